"""The heartbeat: what it must hold, and how it is sent."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from config.args import WorkerArguments
from config.states import WorkerState
from monitor.heartbeat import Heartbeat, HeartbeatSender
from tests.doubles import JUMPING, logged

LEAST = {"worker_id": "w", "model_name": "m", "backend": "other", "host": "10.0.0.7", "port": 8001}


@pytest.fixture
def anyio_backend() -> object:
    return JUMPING


# -- the record ----------------------------------------------------------------------------------------------------


def test_five_fields_make_a_ready_worker() -> None:
    beat = Heartbeat.model_validate(LEAST)
    assert (beat.state, beat.heartbeat_interval, beat.log_streaming) == (WorkerState.READY, 30, False)
    assert beat.names == ("m",)


@pytest.mark.parametrize("field", list(LEAST))
def test_each_of_the_five_is_needed(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        Heartbeat.model_validate({name: value for name, value in LEAST.items() if name != field})


def test_unknown_fields_are_kept() -> None:
    beat = Heartbeat.model_validate({**LEAST, "rack": {"row": 7}})
    assert beat.model_dump(mode="json")["rack"] == {"row": 7}


def test_a_beat_crosses_the_wire_whole() -> None:
    beat = Heartbeat.model_validate({**LEAST, "state": "loading", "aliases": ["n"], "started_at": 1.5, "gpu_ids": [0],
                                     "gpu_memory": [{"gpu_id": 0, "total": 2**37, "used_before_load": 1}]})  # fmt: skip
    assert Heartbeat.model_validate_json(beat.model_dump_json()) == beat


def test_a_name_given_twice_is_one_name() -> None:
    assert Heartbeat.model_validate({**LEAST, "aliases": ["m", "n", "n"]}).names == ("m", "n")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("worker_id", "a/b"), ("worker_id", ""), ("worker_id", "x" * 257), ("model_name", "a b"), ("port", 0),
        ("port", 65536), ("host", "h/../x"), ("host", "h:1 GET /"), ("state", "healthy"), ("heartbeat_interval", 0),
        ("heartbeat_interval", 10**6), ("aliases", ["a\n"]), ("started_at", float("inf")), ("started_at", float("nan")),
        ("node", "\ud800"), ("load", {"x": "\udfff"}), ("unknown", "\ud800"),
        ("gpu_memory", [{"gpu_id": -1}]), ("gpu_memory", [{"total": 1}]), ("gpu_memory", [{"gpu_id": 0, "used": -1}]),
    ],
)  # fmt: skip
def test_a_beat_that_would_break_others_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        Heartbeat.model_validate({**LEAST, field: value})


# -- the sender ----------------------------------------------------------------------------------------------------

OK, AWAY, BROKEN = httpx.Response(200, json={}), httpx.ConnectError("refused"), httpx.Response(503, text="not now")


class Gateway:
    """Answers each beat with the next of its answers, the last one for ever, and remembers what came when."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.times: list[float] = []
        self._more = asyncio.Event()

    async def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.times.append(asyncio.get_running_loop().time())
        self._more.set()
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, content=answer.content)

    async def wait_for(self, count: int) -> None:
        while len(self.requests) < count:
            self._more.clear()
            await self._more.wait()

    def pauses(self) -> list[float]:
        return [round(after - before, 1) for before, after in zip(self.times, self.times[1:], strict=False)]


def beat(state: WorkerState = WorkerState.READY) -> Heartbeat:
    return Heartbeat.model_validate({**LEAST, "state": state})


@asynccontextmanager
async def sending(
    gateway: Gateway, make_beat: Callable[[], Heartbeat] = beat, **more: Any
) -> AsyncIterator[HeartbeatSender]:
    facts = {"gateway_address": "http://gateway:4000", "heartbeat_interval": 10, **more}
    async with httpx.AsyncClient(transport=httpx.MockTransport(gateway.answer), verify=False) as client:
        sender = HeartbeatSender(client, WorkerArguments(model="m", **facts), make_beat)
        sender.start()
        yield sender
        await sender.stop()


@pytest.mark.anyio
async def test_a_beat_goes_out_at_once_and_then_every_interval() -> None:
    gateway = Gateway(OK)
    async with sending(gateway, token="t0ken"):
        await gateway.wait_for(4)
    assert gateway.pauses()[:3] == [10, 10, 10]
    first = gateway.requests[0]
    assert (first.method, str(first.url)) == ("POST", "http://gateway:4000/v1/workers/heartbeat")
    assert first.headers["authorization"] == "Bearer t0ken"
    assert Heartbeat.model_validate_json(first.content) == beat()
    assert b"t0ken" not in first.content


@pytest.mark.anyio
@pytest.mark.parametrize(
    "trouble", [AWAY, BROKEN, httpx.Response(409), httpx.ReadTimeout("slow")], ids=["away", "broken", "refused", "slow"]
)
async def test_a_beat_that_did_not_arrive_is_sent_again_soon(trouble: httpx.Response | Exception) -> None:
    gateway = Gateway(trouble, trouble, OK)
    async with sending(gateway):
        await gateway.wait_for(4)
    assert gateway.pauses()[:3] == [1, 1, 10]


@pytest.mark.anyio
async def test_a_gateway_that_stays_away_is_complained_of_once_and_its_return_is_told() -> None:
    gateway = Gateway(OK, AWAY, AWAY, AWAY, BROKEN, BROKEN, OK)
    with logged() as events:
        async with sending(gateway):
            await gateway.wait_for(8)
    errors = [record.__dict__["values"]["error"] for record in events.named("beat_not_taken")]
    assert errors == ["ConnectError: refused", "HTTP 503: not now"]
    assert len(events.named("gateway_joined")) == 1
    assert len(events.named("gateway_back")) == 1


@pytest.mark.anyio
async def test_a_change_does_not_wait_for_the_interval() -> None:
    gateway = Gateway(OK)
    states = iter([WorkerState.LOADING, WorkerState.READY, WorkerState.READY])
    async with sending(gateway, lambda: beat(next(states))) as sender:
        await gateway.wait_for(1)
        sender.beat_soon()
        await gateway.wait_for(2)
    assert gateway.pauses()[0] == 0
    assert [json.loads(request.content)["state"] for request in gateway.requests[:2]] == ["loading", "ready"]


@pytest.mark.anyio
async def test_a_change_while_a_beat_is_on_its_way_is_not_lost() -> None:
    gateway = Gateway(OK)
    made = 0

    def make_beat() -> Heartbeat:
        nonlocal made
        made += 1
        if made == 1:
            sender.beat_soon()
        return beat()

    async with sending(gateway, make_beat) as sender:
        await gateway.wait_for(2)
    assert gateway.pauses()[0] == 0


@pytest.mark.anyio
async def test_the_last_beat_says_how_it_ended() -> None:
    gateway = Gateway(OK)
    state = [WorkerState.READY]
    async with sending(gateway, lambda: beat(state[0])):
        await gateway.wait_for(1)
        state[0] = WorkerState.STOPPING
    assert json.loads(gateway.requests[-1].content)["state"] == "stopping"


@pytest.mark.anyio
async def test_a_gateway_that_is_away_does_not_keep_a_worker_from_stopping() -> None:
    gateway = Gateway(AWAY)
    async with sending(gateway):
        await gateway.wait_for(1)
    assert len(gateway.requests) == 2


@pytest.mark.anyio
@pytest.mark.parametrize("turns", range(5))
async def test_a_change_just_before_the_end_does_not_keep_a_worker_from_stopping(turns: int) -> None:
    gateway = Gateway(OK)
    async with sending(gateway) as sender:
        await gateway.wait_for(1)
        await asyncio.sleep(1)
        sender.beat_soon()
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.wait_for(sender.stop(), 60)
        seen = len(gateway.requests)
        await asyncio.sleep(100)
        assert len(gateway.requests) == seen, "no beat after the last one"


@pytest.mark.anyio
async def test_a_worker_without_a_gateway_is_silent() -> None:
    gateway = Gateway(OK)
    async with sending(gateway, gateway_address="") as sender:
        sender.beat_soon()
        await asyncio.sleep(100)
    assert not gateway.requests


@pytest.mark.anyio
async def test_a_beat_that_cannot_be_made_is_told_and_tried_again() -> None:
    gateway = Gateway(OK)
    ports = iter([0, 8001, 8001, 8001])
    with logged() as events:
        async with sending(gateway, lambda: Heartbeat.model_validate({**LEAST, "port": next(ports)})):
            await gateway.wait_for(1)
    assert "port" in events.named("beat_not_taken")[0].__dict__["values"]["error"]
