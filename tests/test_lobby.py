"""Requests that find no free replica: they wait for their turn, hear of it, and leave in time."""

import asyncio
import gc
import hashlib
import json
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from prometheus_client import generate_latest

from config.admission import AdmissionSettings
from config.settings import RoutingSettings
from relay.flight import Flight
from tests.relay_double import MODEL, Gate, door
from tests.scripted import read_request, scripted
from tests.support import chat_body

pytestmark = pytest.mark.anyio

STREAM = b'data: {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def key(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "hash": hashlib.sha256(f"sk-{name}".encode()).hexdigest(), **more}


class SlowWorker:
    """Answers a request whenever it is told to, and knows in which order they came."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.grew = asyncio.Event()
        self._turns = asyncio.Semaphore(0)

    async def script(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            _, _, body = (await read_request(reader)).partition(b"\r\n\r\n")
            question = json.loads(body)
            self.asked.append(question["messages"][0]["content"])
            self.grew.set()
            await self._turns.acquire()
            writer.write(answer_to(question))
            await writer.drain()

    def answer(self, times: int = 1) -> None:
        for _ in range(times):
            self._turns.release()

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.asked) < count:
                self.grew.clear()
                await self.grew.wait()


def answer_to(question: dict[str, Any]) -> bytes:
    if question.get("refuse"):
        return b'HTTP/1.1 400 Bad Request\r\ncontent-length: 29\r\n\r\n{"error":\n{"message": "no"}}\n'
    if question.get("stream"):
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(STREAM), STREAM)
    return b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


@asynccontextmanager
async def busy_door(
    admission: AdmissionSettings | None = None, **settings: Any
) -> AsyncIterator[tuple[Gate, SlowWorker]]:
    """One worker that takes one request at a time, and has one."""
    worker = SlowWorker()
    admission = admission or AdmissionSettings(capacity=1)
    async with scripted(worker.script) as (_, address), door(RoutingSettings(), admission, **settings) as gate:
        gate.add("w1", address)
        first = asyncio.create_task(ask(gate, "first"))
        await worker.wait_for(1)
        yield gate, worker
        worker.answer(1000)
        await first


async def ask(
    gate: Gate, what: str, *, name: str = "alice", headers: dict[str, str] | None = None, **more: Any
) -> httpx.Response:
    body = {**chat_body(MODEL, **more), "messages": [{"role": "user", "content": what}]}
    headers = {"authorization": f"Bearer sk-{name}", **(headers or {})}
    return await gate.http.post("/v1/chat/completions", json=body, headers=headers)


async def queue(gate: Gate, *questions: str, **how: Any) -> list["asyncio.Task[httpx.Response]"]:
    """Asks one after the other, each when the one before is in the queue."""
    tasks = []
    for question in questions:
        before = waiting(gate)
        tasks.append(asyncio.create_task(ask(gate, question, **how)))
        async with asyncio.timeout(5):
            while waiting(gate) == before:
                await asyncio.sleep(0.001)
    return tasks


def waiting(gate: Gate) -> int:
    return gate.lobby.admission.waiting(MODEL)


async def test_requests_wait_for_a_free_replica_in_order() -> None:
    async with busy_door() as (gate, worker):
        tasks = await queue(gate, "a", "b", "c")
        assert worker.asked == ["first"]
        worker.answer(4)
        answers = await asyncio.gather(*tasks)
    assert worker.asked == ["first", "a", "b", "c"]
    assert {answer.status_code for answer in answers} == {200}
    assert all(int(answer.headers["x-ichat-queue-ms"]) >= 0 for answer in answers)
    assert 'ichat_gateway_queue_left_total{model="m",outcome="served"} 3.0' in generate_latest(gate.metrics).decode()


async def test_the_workers_own_word_is_its_capacity() -> None:
    worker = SlowWorker()
    async with scripted(worker.script) as (_, address), door() as gate:
        gate.add("w1", address, capacity=2)
        tasks = [asyncio.create_task(ask(gate, "x")) for _ in range(2)]
        await worker.wait_for(2)
        tasks += await queue(gate, "third")
        assert gate.router.in_flight == {"w1": 2}
        worker.answer(3)
        assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {200}


async def test_urgent_ones_go_first_and_keys_take_turns() -> None:
    keys = [key("alice"), key("bob", priority="high")]
    async with busy_door(keys=keys) as (gate, worker):
        tasks = await queue(gate, "a1", "a2", "a3")
        tasks += await queue(gate, "low", headers={"x-ichat-priority": "low"})
        tasks += await queue(gate, "b1", name="bob", headers={"x-ichat-priority": "normal"})
        tasks += await queue(gate, "urgent", name="bob", headers={"x-ichat-priority": "high"})
        tasks += await queue(gate, "a4", headers={"x-ichat-priority": "high"})  # above her cap: as normal
        worker.answer(8)
        await asyncio.gather(*tasks)
    assert worker.asked == ["first", "urgent", "a1", "b1", "a2", "a3", "a4", "low"]


async def test_a_full_queue_is_a_429_that_says_when_to_come_again() -> None:
    async with busy_door(AdmissionSettings(capacity=1, max_queue=1)) as (gate, worker):
        tasks = await queue(gate, "a")
        refused = await ask(gate, "b")
        worker.answer(2)
        await asyncio.gather(*tasks)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1
    assert worker.asked == ["first", "a"]


async def test_whoever_must_make_room_gets_the_429() -> None:
    async with busy_door(AdmissionSettings(capacity=1, max_queue=1)) as (gate, worker):
        pushed_out = await queue(gate, "a")
        urgent = asyncio.create_task(ask(gate, "b", headers={"x-ichat-priority": "high"}))
        assert (await pushed_out[0]).status_code == 429
        worker.answer(2)
        assert (await urgent).status_code == 200


async def test_a_client_that_goes_leaves_the_queue() -> None:
    async with busy_door() as (gate, worker):
        gone, *stays = await queue(gate, "gone", "stays")
        gone.cancel()
        async with asyncio.timeout(5):
            while waiting(gate) > 1:
                await asyncio.sleep(0.001)
        worker.answer(2)
        assert (await stays[0]).status_code == 200
    assert worker.asked == ["first", "stays"]


@pytest.mark.parametrize("how", ["it goes", "the gateway stops"])
async def test_a_request_that_leaves_the_queue_is_not_kept_in_memory(how: str) -> None:
    async with busy_door() as (gate, _):
        (gone,) = await queue(gate, "gone")
        flights = [weakref.ref(each) for each in gc.get_objects() if isinstance(each, Flight) and each.cancel_wait]
        assert len(flights) == 1
        gc.collect()
        gc.disable()
        try:
            if how == "it goes":
                gone.cancel()
            else:
                gate.relay.cut_flights()
            async with asyncio.timeout(5):
                while flights[0]() is not None:
                    await asyncio.sleep(0.001)
        finally:
            gc.enable()


async def test_a_deadline_is_kept_in_the_queue() -> None:
    async with busy_door() as (gate, _):
        late = await ask(gate, "late", headers={"x-ichat-timeout-s": "0.05"})
        assert waiting(gate) == 0
    assert late.status_code in (503, 504)
    assert "x-ichat-timeout-s" in late.json()["error"]["message"]


async def test_a_deadline_is_kept_at_the_worker() -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read()

    async with scripted(silent) as (seen, address), door() as gate:
        gate.add("w1", address)
        late = await ask(gate, "late", headers={"x-ichat-timeout-s": "0.05"})
        await asyncio.wait_for(seen.closed.wait(), 5)  # the engine does not go on with it
    assert late.status_code == 504
    assert late.json()["error"]["code"] == "deadline_exceeded"
    assert "w1" in late.json()["error"]["message"]


async def test_the_default_deadline_of_the_queue() -> None:
    settings = AdmissionSettings(capacity=1, default_timeout_s=0.05)
    async with busy_door(settings) as (gate, _):
        late = await ask(gate, "late")
    assert late.status_code == 503
    assert late.json()["error"]["code"] == "queue_timeout"


@pytest.mark.parametrize(
    "headers", [{"x-ichat-timeout-s": "soon"}, {"x-ichat-timeout-s": "0"}, {"x-ichat-priority": "?"}]
)
async def test_words_that_mean_nothing_are_400s(headers: dict[str, str]) -> None:
    async with busy_door() as (gate, _):
        answer = await ask(gate, "x", headers=headers)
    assert answer.status_code == 400
    assert next(iter(headers)) in answer.json()["error"]["message"]


async def test_a_stream_that_waits_hears_of_it_and_then_goes_on() -> None:
    settings = AdmissionSettings(capacity=1, queue_notice_s=0.01)
    async with busy_door(settings) as (gate, worker):
        body = {**chat_body(MODEL, stream=True), "messages": [{"role": "user", "content": "s"}]}
        async with gate.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert [name for name in answer.headers if name.startswith("x-")] == ["x-request-id"], "it is nowhere yet"
            pieces = answer.aiter_raw()
            assert (await anext(pieces)).startswith(b": queued position=1")
            worker.answer(2)
            rest = b"".join([piece async for piece in pieces])
    notices = rest.removesuffix(STREAM)
    assert rest.endswith(STREAM)
    assert all(line.startswith(b": queued") for line in notices.split(b"\n\n") if line)


async def test_an_error_after_such_a_notice_is_an_event() -> None:
    settings = AdmissionSettings(capacity=1, queue_notice_s=0.01)
    async with busy_door(settings) as (gate, worker):
        body = {**chat_body(MODEL, stream=True, refuse=True), "messages": [{"role": "user", "content": "s"}]}
        async with gate.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            pieces = answer.aiter_raw()
            assert (await anext(pieces)).startswith(b": queued")
            worker.answer(2)
            rest = b"".join([piece async for piece in pieces])
    assert rest.endswith(b'data: {"error": {"message": "no"}}\n\n')


async def test_all_who_wait_are_told_when_the_gateway_stops() -> None:
    async with busy_door() as (gate, worker):
        tasks = await queue(gate, "a", "b")
        gate.relay.cut_flights()
        assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {503}
        worker.answer()


async def test_a_model_whose_workers_go_answers_all_who_wait() -> None:
    async with busy_door() as (gate, _):
        tasks = await queue(gate, "a", "b")
        gate.registry.forget("w1")
        assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {404}


async def test_a_replica_that_is_away_for_a_moment_empties_no_queue() -> None:
    async with busy_door() as (gate, worker):
        tasks = await queue(gate, "a", "b")
        gate.registry.mark_unreachable("w1", "one probe failed")
        assert waiting(gate) == 2
        gate.registry.mark_reachable("w1")
        worker.answer(3)
        assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {200}


async def test_another_replica_takes_those_who_wait() -> None:
    async with busy_door() as (gate, worker):
        tasks = await queue(gate, "a")
        other = SlowWorker()
        async with scripted(other.script) as (_, address):
            gate.add("w2", address)
            await other.wait_for(1)
            other.answer()
            assert (await tasks[0]).headers["x-ichat-worker"] == "w2"
            assert worker.asked == ["first"]


# -- limits --------------------------------------------------------------------------------------------------------


async def test_what_is_left_of_a_key_stands_in_every_answer() -> None:
    keys = [key("alice", limits={"requests_per_minute": 5, "tokens_per_minute": 1000})]
    async with busy_door(AdmissionSettings(), keys=keys) as (gate, worker):
        worker.answer(2)
        answer = await ask(gate, "x")
    assert answer.headers["x-ratelimit-limit-requests"] == "5"
    assert answer.headers["x-ratelimit-remaining-requests"] == "3"
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 1000


async def test_a_key_that_has_used_its_requests_is_a_429() -> None:
    keys = [key("alice", limits={"requests_per_minute": 1}), key("bob")]
    async with busy_door(AdmissionSettings(), keys=keys) as (gate, worker):
        refused = await ask(gate, "x")
        worker.answer(2)
        assert (await ask(gate, "x", name="bob")).status_code == 200
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 0 < int(refused.headers["retry-after"]) <= 60


async def test_concurrency_is_free_again_when_a_request_ends() -> None:
    keys = [key("alice", limits={"concurrency": 1})]
    async with busy_door(AdmissionSettings(), keys=keys) as (gate, worker):
        assert (await ask(gate, "x")).status_code == 429
        worker.answer(3)
        async with asyncio.timeout(5):
            while gate.router.in_flight:
                await asyncio.sleep(0.001)
        for _ in range(2):
            assert (await ask(gate, "x")).status_code == 200


@pytest.mark.share("litellm")  # which imports the client too: it takes a second
async def test_openais_client_waits_as_it_is_told_and_comes_again() -> None:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletionUserMessageParam

    keys = [key("alice", limits={"concurrency": 1, "requests_per_minute": 100})]
    async with busy_door(AdmissionSettings(), keys=keys) as (gate, worker):
        worker.answer()
        async with asyncio.timeout(5):
            while gate.router.in_flight:
                await asyncio.sleep(0.001)
        taken = asyncio.create_task(ask(gate, "long"))
        await worker.wait_for(2)
        asked: list[int] = []

        async def note(response: httpx.Response) -> None:
            asked.append(response.status_code)
            worker.answer(2)  # the long one ends while the client waits

        http = httpx.AsyncClient(trust_env=False, verify=False, event_hooks={"response": [note]})
        async with AsyncOpenAI(base_url=f"{gate.http.base_url}/v1", api_key="sk-alice", http_client=http) as client:
            messages: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "again"}]
            answer = await client.chat.completions.with_raw_response.create(model=MODEL, messages=messages)
        await taken
    assert asked == [429, 200]
    assert answer.retries_taken == 1
    assert answer.headers["x-ratelimit-limit-requests"] == "100"
