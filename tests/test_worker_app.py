"""The worker's doors: its own routes, and the way to the engine."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import JSONResponse

from backends.base import Progress
from backends.status import WorkerStatus
from config.args import WorkerArguments
from config.states import WorkerState
from monitor.logs import LogBuffer
from utils.sse import SSEParser
from worker.app import WorkerApp
from worker.metrics import Traffic, create_registry

HERE, AWAY = ("127.0.0.1", 5), ("10.0.0.7", 5)
TOKEN = "t0ken"


class Worker:
    """A worker with all but its engine."""

    def __init__(self, **arguments: Any) -> None:
        self.status = WorkerStatus()
        self.logs = LogBuffer(first_id=1)
        self.traffic = Traffic()
        self.metrics: CollectorRegistry = create_registry(self.status, self.traffic, lambda: Progress(0, 0))
        facts = WorkerArguments(model="m", worker_id="w1", **arguments)
        self.app = WorkerApp(facts, self.status, self.logs, self.traffic, self.metrics)

    @asynccontextmanager
    async def client(self, address: tuple[str, int] = HERE) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(self.app, client=address)
        async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
            yield client

    async def get(self, path: str, address: tuple[str, int] = HERE, **headers: str) -> httpx.Response:
        async with self.client(address) as client:
            return await client.get(path, headers=headers)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An engine's app that answers with what it was asked."""
    request = Request(scope, receive)
    body = await request.body()
    await JSONResponse({"path": request.url.path, "body": body.decode()}, 201)(scope, receive, send)


def ready(**arguments: Any) -> Worker:
    worker = Worker(**arguments)
    worker.app.attach(echo)
    worker.status.set(WorkerState.READY)
    return worker


# -- health --------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_a_ready_worker_is_healthy(path: str) -> None:
    answer = await ready().get(path)
    assert answer.status_code == 200
    assert answer.json()["status"] == "ok"
    assert answer.json()["worker_id"] == "w1"


@pytest.mark.anyio
@pytest.mark.parametrize("state", [state for state in WorkerState if state is not WorkerState.READY])
async def test_in_every_other_state_it_says_which_and_why(state: WorkerState) -> None:
    worker = Worker()
    worker.status.set(state, "because")
    answer = await worker.get("/health")
    assert answer.status_code == 503
    assert (answer.json()["status"], answer.json()["reason"]) == (state.value, "because")


# -- the way to the engine -----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_what_is_not_the_workers_own_goes_to_the_engine_as_it_is() -> None:
    worker = ready()
    async with worker.client(AWAY) as client:
        answer = await client.post("/v1/chat/completions", content=b'{"model": "m"}')
        assert (answer.status_code, answer.json()["path"]) == (201, "/v1/chat/completions")
        assert answer.json()["body"] == '{"model": "m"}'
        assert (await client.post("/v1/of/the/engine")).status_code == 201
        assert (await client.get("/v1/models")).status_code == 201
    assert (worker.traffic.requests, worker.traffic.in_flight, worker.traffic.turned_away) == (3, 0, 0)


@pytest.mark.anyio
@pytest.mark.parametrize("state", [state for state in WorkerState if state is not WorkerState.READY])
async def test_a_worker_that_is_not_ready_turns_requests_away_in_words_of_its_own(state: WorkerState) -> None:
    worker = ready()
    worker.status.set(state, "because")
    answer = await worker.get("/v1/models")
    assert answer.status_code == 503
    assert answer.headers["x-ichat-worker-state"] == state.value
    assert int(answer.headers["retry-after"]) > 0
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "no_replica_ready")
    assert "w1" in error["message"]
    assert "because" in error["message"]
    assert worker.traffic.turned_away == 1


@pytest.mark.anyio
async def test_an_engine_that_is_not_attached_yet_gets_nothing() -> None:
    worker = Worker()
    worker.status.set(WorkerState.READY)
    assert (await worker.get("/v1/models")).status_code == 503


@pytest.mark.anyio
async def test_the_engines_own_503_is_not_taken_for_the_doors() -> None:
    worker = ready()
    worker.app.attach(JSONResponse({}, 503))
    answer = await worker.get("/v1/models")
    assert answer.status_code == 503
    assert "x-ichat-worker-state" not in answer.headers


@pytest.mark.anyio
async def test_a_request_that_would_load_what_is_not_allowed_does_not_reach_the_engine() -> None:
    worker = ready(allowed_media_domains=("img.example",))
    async with worker.client() as client:
        for host, status in (("img.example", 201), ("10.0.0.1", 400)):
            answer = await client.post("/v1/chat/completions", json={"image_url": f"http://{host}/x"})
            assert answer.status_code == status
    assert worker.traffic.in_flight == 0


class Gate:
    """An engine's app whose answers wait until it is opened."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.entered.set()
        await self.opened.wait()
        await JSONResponse({})(scope, receive, send)


@pytest.mark.anyio
async def test_a_request_is_in_flight_until_its_answer_has_ended() -> None:
    worker, gate = ready(), Gate()
    worker.app.attach(gate)
    await worker.app.wait_idle()
    asked = asyncio.create_task(worker.get("/v1/models"))
    await gate.entered.wait()
    idle = asyncio.create_task(worker.app.wait_idle())
    assert (await worker.get("/health")).json()["in_flight"] == 1
    assert not idle.done()
    gate.opened.set()
    await idle
    assert (await asked).status_code == 200
    assert worker.traffic.in_flight == 0


@pytest.mark.anyio
async def test_an_engine_that_breaks_leaves_no_request_in_flight() -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("the engine broke")

    worker = ready()
    worker.app.attach(broken)
    with pytest.raises(RuntimeError, match="broke"):
        await worker.get("/v1/models")
    await worker.app.wait_idle()


@pytest.mark.anyio
async def test_a_client_that_goes_away_leaves_no_request_in_flight() -> None:
    worker, gate = ready(), Gate()
    worker.app.attach(gate)
    asked = asyncio.create_task(worker.get("/v1/models"))
    await gate.entered.wait()
    asked.cancel()
    await worker.app.wait_idle()
    assert worker.traffic.in_flight == 0
    with pytest.raises(asyncio.CancelledError):
        await asked


# -- metrics -------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_metrics_tell_state_and_traffic() -> None:
    worker = ready()
    await worker.get("/v1/models")
    text = (await worker.get("/metrics", AWAY)).text
    assert 'ichat_worker_state{state="ready"} 1.0' in text
    assert 'ichat_worker_state{state="loading"} 0.0' in text
    assert "ichat_worker_requests_total 1.0" in text
    assert "ichat_worker_load_seconds" in text
    assert "python_info" in text  # what the engines put into the client library's own registry


# -- the log -------------------------------------------------------------------------------------------------------


def said(answer: httpx.Response) -> list[str]:
    return [json.loads(event.data)["text"] for event in SSEParser().feed(answer.content)]


def with_a_log(**arguments: Any) -> Worker:
    worker = Worker(**arguments)
    for text in ("one", "two"):
        worker.logs.append(text, "info")
    worker.app.close_streams()  # so that the stream has an end
    return worker


@pytest.mark.anyio
async def test_the_log_can_be_read_while_the_engine_loads() -> None:
    answer = await with_a_log().get("/logs/stream")
    assert answer.status_code == 200
    assert said(answer) == ["one", "two"]


@pytest.mark.anyio
async def test_the_log_goes_on_after_the_last_line_that_was_read() -> None:
    assert said(await with_a_log().get("/logs/stream", HERE, **{"last-event-id": "1"})) == ["two"]


@pytest.mark.anyio
async def test_the_end_of_a_log_stream_is_told() -> None:
    worker, ends = with_a_log(), []
    worker.app.on_reader_gone = lambda: ends.append("gone")
    await worker.get("/logs/stream")
    assert ends == ["gone"]


@pytest.mark.anyio
async def test_without_a_token_the_log_is_for_this_machine_alone() -> None:
    answer = await with_a_log().get("/logs/stream", AWAY, authorization=f"Bearer {TOKEN}")
    assert answer.status_code == 403
    assert "ICHAT_WORKER_TOKEN" in answer.json()["error"]["message"]
    assert "worker_token" in answer.json()["error"]["message"]


@pytest.mark.anyio
@pytest.mark.parametrize("address", [HERE, AWAY])
async def test_with_a_token_the_log_is_for_who_has_it(address: tuple[str, int]) -> None:
    worker = with_a_log(token=TOKEN)
    assert said(await worker.get("/logs/stream", address, authorization=f"Bearer {TOKEN}")) == ["one", "two"]
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer "}):
        answer = await worker.get("/logs/stream", address, **headers)
        assert answer.status_code == 403
        assert TOKEN not in answer.text


@pytest.mark.anyio
async def test_a_worker_that_streams_no_log_says_so() -> None:
    answer = await with_a_log(log_streaming=False).get("/logs/stream")
    assert answer.status_code == 404
    assert "--log-streaming" in answer.json()["error"]["message"]


# -- control -------------------------------------------------------------------------------------------------------

STEPS = [("POST", "drain"), ("POST", "sleep"), ("POST", "wake"), ("POST", "adapters"), ("DELETE", "adapters")]


@pytest.mark.anyio
@pytest.mark.parametrize(("method", "step"), STEPS)
async def test_control_is_for_the_gateway_alone(method: str, step: str) -> None:
    async def ask(worker: Worker, address: tuple[str, int], **headers: str) -> int:
        async with worker.client(address) as client:
            answer = await client.request(method, f"/control/{step}", headers=headers)
            assert answer.json()["error"]["message"]
            return answer.status_code

    assert await ask(ready(), AWAY) == 403
    assert await ask(ready(), HERE, origin="http://evil.example") == 403
    assert await ask(ready(token=TOKEN), HERE) == 403
    assert await ask(ready(token=TOKEN), HERE, authorization="Bearer wrong") == 403
    let_in = 400 if step == "adapters" else 409  # there is no backend here
    assert await ask(ready(), HERE) == let_in
    assert await ask(ready(token=TOKEN), AWAY, authorization=f"Bearer {TOKEN}") == let_in


@pytest.mark.anyio
@pytest.mark.parametrize("body", [b"", b"[]", b'{"name": 1, "path": "x"}', b'{"name": "x"}',
                                  b'{"name": "\\ud800", "path": "/x"}'])  # fmt: skip
async def test_an_adapter_must_be_named_in_words(body: bytes) -> None:
    async with ready().client() as client:
        answer = await client.post("/control/adapters", content=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]


@pytest.mark.anyio
@pytest.mark.parametrize("level", ["x", "9" * 5000, "", "-1"])
async def test_a_level_is_a_small_number(level: str) -> None:
    async with ready().client() as client:
        answer = await client.post("/control/sleep", params={"level": level})
        assert answer.status_code == 400


@pytest.mark.anyio
async def test_other_methods_of_our_routes_are_told_apart_from_no_route() -> None:
    async with ready().client() as client:
        wrong = await client.get("/control/drain")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
        assert (await client.head("/health")).status_code == 200
        assert (await client.get("/control/none")).status_code == 404


@pytest.mark.anyio
async def test_a_route_that_crashes_is_enveloped(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = ready()

    def crash() -> Any:
        raise RuntimeError("odd")

    monkeypatch.setattr(worker.app, "_get_backend", crash)
    monkeypatch.setattr(worker.app._control, "_backend", crash)
    async with worker.client() as client:
        answer = await client.post("/control/wake")
    assert answer.status_code == 500
    assert "RuntimeError" in answer.json()["error"]["message"]
