"""The configured policy, seen from a client."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from config.settings import ModelRouting, PolicyName, RoutingSettings
from tests.relay_double import MODEL, Gate, door
from tests.scripted import OK, answering, read_request, scripted
from tests.support import chat_body

pytestmark = pytest.mark.anyio


async def chosen(routing: RoutingSettings, *requests: dict[str, Any]) -> list[str]:
    """Which of three idle workers each request went to, one after the other."""
    async with AsyncExitStack() as stack:
        gate = await stack.enter_async_context(door(routing))
        for worker_id in ("w1", "w2", "w3"):
            _, address = await stack.enter_async_context(scripted(answering(*[OK] * 50)))
            gate.add(worker_id, address)
        answers = []
        for request in requests:
            headers = request.get("headers", {})
            body = {"model": MODEL, "messages": [], **{key: request[key] for key in request if key != "headers"}}
            answers.append(await gate.http.post("/v1/chat/completions", json=body, headers=headers))
        return [answer.headers["x-ichat-worker"] for answer in answers]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"headers": {"x-ichat-session": "alice"}}, {"headers": {"x-ichat-session": "bob"}}),
        ({"user": "alice"}, {"user": "bob"}),
        ({"prompt_cache_key": "alice"}, {"prompt_cache_key": "bob"}),
        ({"user": {"odd": [1]}}, {"user": 7}),
    ],
)
async def test_a_session_stays_at_its_worker(one: dict[str, Any], other: dict[str, Any]) -> None:
    routing = RoutingSettings(policy="session")
    workers = await chosen(routing, *[one, other] * 5)
    assert len(set(workers[::2])) == 1
    assert len(set(workers[1::2])) == 1


async def test_the_header_stands_above_the_body() -> None:
    routing = RoutingSettings(policy="session")
    sessions = [{"headers": {"x-ichat-session": "alice"}, "user": str(number)} for number in range(8)]
    assert len(set(await chosen(routing, *sessions))) == 1


@pytest.mark.parametrize("nobody", [{}, {"user": None}, {"user": ""}])
async def test_without_a_session_all_take_part(nobody: dict[str, Any]) -> None:
    assert len(set(await chosen(RoutingSettings(policy="session"), *[nobody] * 30))) == 3


async def test_a_model_may_have_a_policy_of_its_own() -> None:
    routing = RoutingSettings(policy="random", models={MODEL: ModelRouting(policy="round_robin")})
    assert Counter(await chosen(routing, *[{}] * 9)) == {"w1": 3, "w2": 3, "w3": 3}


@pytest.mark.parametrize("policy", ["cache_aware", "least_load", "power_of_two", "random"])
async def test_each_policy_uses_all_workers(policy: PolicyName) -> None:
    assert len(set(await chosen(RoutingSettings(policy=policy), *[{}] * 30))) == 3


# -- caches, seen from a client ------------------------------------------------------------------------------------

PROMPT = "once upon a time " * 60


def usage(cached: int) -> bytes:
    body = b'{"usage": {"prompt_tokens": 300, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": %d}}}'
    body %= cached
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


@asynccontextmanager
async def three_workers(*answers: bytes, **settings: Any) -> AsyncIterator[Gate]:
    async with AsyncExitStack() as stack:
        gate = await stack.enter_async_context(door(RoutingSettings(**settings)))
        for worker_id in ("w1", "w2", "w3"):
            _, address = await stack.enter_async_context(scripted(answering(*answers or [OK] * 50)))
            gate.add(worker_id, address)
        yield gate


async def worker_for(gate: Gate, *turns: str, **headers: str) -> str:
    body = {"model": MODEL, "messages": [{"role": "user", "content": turn} for turn in turns]}
    answer = await gate.http.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200
    return str(answer.headers["x-ichat-worker"])


async def test_conversations_stay_where_they_are_cached() -> None:
    async with three_workers() as gate:
        homes = {}
        for number in range(6):
            homes[number] = await worker_for(gate, f"{number} {PROMPT}")
        assert Counter(homes.values()) == {"w1": 2, "w2": 2, "w3": 2}
        for number in (5, 2, 0, 3, 1, 4):
            assert await worker_for(gate, f"{number} {PROMPT}", "yes", "and then?") == homes[number]


async def test_a_worker_that_starts_again_has_nothing_cached() -> None:
    async with three_workers() as gate:
        home = await worker_for(gate, PROMPT)
        for _ in range(3):
            assert await worker_for(gate, PROMPT) == home
        beat = gate.registry.worker(home).beat
        gate.registry.upsert(beat.model_copy(update={"pid": 4711}), now=1)
        cached = [each["cached_bytes"] for each in gate.router.decisions.last(MODEL)[0]["candidates"]]
        assert sum(map(bool, cached)) == 1
        await worker_for(gate, PROMPT)
        cached = [each["cached_bytes"] for each in gate.router.decisions.last(MODEL)[0]["candidates"]]
        assert cached == [0, 0, 0]


@pytest.mark.parametrize(("told", "believed"), [(0, 0), (290, 900)])
async def test_what_the_engine_says_of_its_cache_is_believed(told: int, believed: int) -> None:
    async with AsyncExitStack() as stack:
        gate = await stack.enter_async_context(door())
        _, address = await stack.enter_async_context(scripted(answering(*[usage(cached=told)] * 50)))
        gate.add("w1", address)

        async def thought_to_be_cached(prompt: str) -> int:
            body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}
            answer = await gate.http.post("/v1/chat/completions", json=body, headers={"x-ichat-explain": "1"})
            return int(json.loads(answer.headers["x-ichat-decision"])["candidates"][0]["cached_bytes"])

        assert await thought_to_be_cached(PROMPT) == 0
        assert await thought_to_be_cached("another " * 200) == 0
        assert await thought_to_be_cached("another " * 200) > 0  # the answer says how much of it really was
        assert (await thought_to_be_cached(PROMPT) > believed) == (believed > 0)  # and with it goes what is older


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
WORD = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": null}]}\n\n'
LAST = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


class Reading:
    """Workers that tell the head of a stream at once, as vLLM does, and read the prompt then."""

    def __init__(self) -> None:
        self.heads: asyncio.Queue[None] = asyncio.Queue()
        self.has_read = asyncio.Event()
        self.may_end = asyncio.Event()

    async def script(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD)
        self.heads.put_nowait(None)
        await self.has_read.wait()
        writer.write(b"%x\r\n%b\r\n" % (len(WORD), WORD))
        await self.may_end.wait()
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(LAST), LAST))
        await reader.read()


async def test_a_prompt_is_read_when_the_first_word_comes_not_with_the_head() -> None:
    reading = Reading()
    async with AsyncExitStack() as stack:
        gate = await stack.enter_async_context(door())
        for worker_id in ("w1", "w2"):
            _, address = await stack.enter_async_context(scripted(reading.script))
            gate.add(worker_id, address)
        _, address = await stack.enter_async_context(scripted(answering(*[OK] * 9)))
        gate.add("quick", address, model="other")

        asking = []
        for prompt in (PROMPT * 10, "short"):
            asking.append(asyncio.create_task(stream_from(gate, prompt)))
            await reading.heads.get()
        await gate.http.post("/v1/chat/completions", json=chat_body("other"))  # by then the heads were looked at
        asking.append(asyncio.create_task(stream_from(gate, "also short")))
        await reading.heads.get()
        assert max(waits_for(gate)) > min(waits_for(gate)) + 1
        reading.has_read.set()
        reading.may_end.set()
        workers = [await each for each in asking]
    assert workers[2] == workers[1] != workers[0]


def waits_for(gate: Gate) -> list[float]:
    """What the last request was thought to wait at each worker, in seconds."""
    return [each["expected_wait_s"] for each in gate.router.decisions.last(MODEL)[0]["candidates"]]


async def stream_from(gate: Gate, prompt: str) -> str:
    """The worker that it came from."""
    answer = await gate.chat(stream=True, messages=[{"role": "user", "content": prompt}])
    assert answer.content.endswith(b"data: [DONE]\n\n")
    return str(answer.headers["x-ichat-worker"])


async def test_a_prompt_that_was_read_keeps_nobody_away() -> None:
    reading = Reading()
    reading.has_read.set()
    async with AsyncExitStack() as stack:
        gate = await stack.enter_async_context(door())
        for worker_id in ("w1", "w2"):
            _, address = await stack.enter_async_context(scripted(reading.script))
            gate.add(worker_id, address)
        body = chat_body(MODEL, PROMPT * 10, stream=True)
        async with gate.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            pieces = answer.aiter_bytes()
            await anext(pieces)  # its first word
            assert gate.router.in_flight == {answer.headers["x-ichat-worker"]: 1}
            other = asyncio.create_task(stream_from(gate, "short"))
            await reading.heads.get()
            await reading.heads.get()
            assert max(waits_for(gate)) < 1
            reading.may_end.set()
            await other
            assert [piece async for piece in pieces]


async def test_a_decision_is_explained_on_request() -> None:
    async with three_workers() as gate:
        await worker_for(gate, PROMPT)
        plain = await gate.chat()
        assert "x-ichat-decision" not in plain.headers
        body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}]}
        answer = await gate.http.post("/v1/chat/completions", json=body, headers={"x-ichat-explain": "1"})
        told = json.loads(answer.headers["x-ichat-decision"])
    assert told["worker_id"] == answer.headers["x-ichat-worker"]
    assert told["policy"] == "cache_aware"
    assert {each["worker_id"] for each in told["candidates"]} == {"w1", "w2", "w3"}
    chosen = next(each for each in told["candidates"] if each["worker_id"] == told["worker_id"])
    assert chosen["cached_bytes"] > 1000
    assert chosen["cost_s"] == min(each["cost_s"] for each in told["candidates"])
    assert str(chosen["cached_bytes"]) in told["reason"]


async def test_so_many_decisions_are_kept_as_the_settings_say() -> None:
    async with three_workers(keep_decisions=2) as gate:
        workers = [await worker_for(gate, str(number)) for number in range(4)]
        assert [each["worker_id"] for each in gate.router.decisions.last(MODEL)] == workers[:1:-1]


async def test_none_are_kept_if_not_wanted() -> None:
    async with three_workers(keep_decisions=0) as gate:
        await worker_for(gate, PROMPT)
        assert gate.router.decisions.last(MODEL) == []
