"""Streams that break, and replicas that fail: what the client sees."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from prometheus_client import generate_latest

from relay.streams.unresumable import CHAT, COMPLETION
from tests.model_double import DIED, DONE, REFUSED, Model
from tests.relay_double import MODEL, Gate, door
from tests.scripted import OK, answering, read_request, scripted
from utils.sse import SSEParser

pytestmark = pytest.mark.anyio

TEXT = "Paris is the capital of France, and Rome, 🗼 or not, is that of Italy."
SPEAKER = Model([f"{word} ".encode() for word in TEXT.split()])
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"

TOKENIZE = "/v1/tokenize"

Cut = Callable[[bytes], bytes]
"""A whole stream -> what of it is sent before the connection ends."""


def after(events: int, then: bytes = b"") -> Cut:
    return lambda stream: b"".join(each + b"\n\n" for each in stream.split(b"\n\n")[:events]) + then


def json_answer(body: Any, status: bytes = b"200 OK") -> bytes:
    content = json.dumps(body).encode()
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status, len(content), content
    )  # fmt: skip


def whole(stream: bytes) -> bytes:
    return stream


class Replicas:
    """Replicas of one speaker; each answers as its cut says, and remembers what it was asked."""

    def __init__(self, model: Model = SPEAKER) -> None:
        self._model = model
        self.asked: list[dict[str, Any]] = []
        self.counted: list[str] = []

    def count(self, text: str) -> bytes:
        """The answer to the question how many tokens that is."""
        self.counted.append(text)
        return json_answer({"count": self._model.count(text), "max_model_len": 100, "tokens": []})

    def script(self, cut: Cut) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                head, _, body = (await read_request(reader)).partition(b"\r\n\r\n")
                asked = json.loads(body)
                route = head.split(b" ")[1].decode()
                if route == TOKENIZE:
                    writer.write(self.count(asked["prompt"]))
                    continue
                self.asked.append(asked)
                stream = self._model.answer(route, asked, len(self.asked))
                sent = cut(stream)
                ends = sent.endswith(DONE)
                writer.write(HEAD + b"%x\r\n%b\r\n" % (len(sent), sent) + (END if ends else b""))
                await writer.drain()
                if not ends:
                    return

        return answer


@asynccontextmanager
async def replicas(
    *cuts: Cut, speakers: Replicas | None = None, **settings: Any
) -> AsyncIterator[tuple[Gate, Replicas]]:
    """They are asked in this order: each has more to do than the one before it."""
    speakers = speakers or Replicas()
    async with AsyncExitStack() as stack:
        gate = await stack.enter_async_context(door(**settings))
        for number, cut in enumerate(cuts):
            _, address = await stack.enter_async_context(scripted(speakers.script(cut)))
            gate.add(f"w{number}", address)
            gate.router.in_flight[f"w{number}"] = number
        yield gate, speakers


async def stream(gate: Gate, route: str = CHAT, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
    prompt = {"messages": [{"role": "user", "content": "?"}]} if route == CHAT else {"prompt": ""}
    body = {"model": MODEL, "stream": True, "max_tokens": 100, **prompt, **more}
    return await gate.http.post(route, json=body, headers=headers)


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    parsed = SSEParser().feed(answer.content)
    told = [json.loads(event.data) for event in parsed if event.data != "[DONE]"]
    return [{name: event[name] for name in event if name != "system_fingerprint"} for event in told]


def text(answer: httpx.Response) -> str:
    choices = [choice for event in events(answer) for choice in event.get("choices", [])]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


@pytest.mark.parametrize("route", [CHAT, COMPLETION])
@pytest.mark.parametrize(
    "cut", [after(1), after(2), after(9), after(5, b'data: {"half'), after(5, DIED + DONE), after(5, DONE)]
)
async def test_a_broken_stream_goes_on_elsewhere(route: str, cut: Cut) -> None:
    async with replicas(whole) as (gate, _):
        unbroken = await stream(gate, route, stream_options={"include_usage": True})
    async with replicas(cut, whole) as (gate, speakers):
        answer = await stream(gate, route, stream_options={"include_usage": True})
        counted = generate_latest(gate.metrics).decode()
    assert answer.status_code == 200
    assert answer.headers["x-ichat-worker"] == "w0"
    assert events(answer) == events(unbroken)
    assert answer.content.count(DONE) == 1
    assert answer.content.endswith(DONE)
    assert len(speakers.asked) == 2
    assert 'ichat_gateway_streams_gone_on_total{model="m"} 1.0' in counted


@pytest.mark.parametrize("route", [CHAT, COMPLETION])
@pytest.mark.parametrize("limit", [{"max_tokens": 12}, {"max_tokens": 100, "stream_options": {"include_usage": True}}])
async def test_tokens_that_came_in_one_event_are_counted(route: str, limit: dict[str, Any]) -> None:
    joined = replace(SPEAKER, joined=3)
    async with replicas(whole, speakers=Replicas(joined)) as (gate, _):
        unbroken = await stream(gate, route, **limit)
    async with replicas(after(3), whole, speakers=Replicas(joined)) as (gate, speakers):
        answer = await stream(gate, route, **limit)
    assert text(answer) == text(unbroken)
    assert events(answer)[-1] == events(unbroken)[-1]
    assert len(speakers.counted) == 1


@pytest.mark.parametrize(
    "more", [{"max_tokens": None}, {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}]
)
async def test_tokens_are_not_counted_where_nobody_needs_it(more: dict[str, Any]) -> None:
    async with replicas(after(4), whole) as (gate, speakers):
        answer = await stream(gate, **more)
    assert text(answer) == TEXT + " "
    assert speakers.counted == []


class Uncounting(Replicas):
    """They do not say how many tokens a text has."""

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self._answer = answer

    def count(self, text: str) -> bytes:
        return self._answer


@pytest.mark.parametrize(
    "answer",
    [
        json_answer({"detail": "Not Found"}, b"404 Not Found"),
        json_answer({"count": "many"}),
        json_answer([]),
        b"garbage\r\n\r\n",
    ],
)
async def test_a_stream_goes_on_also_if_nobody_counts_its_tokens(answer: bytes) -> None:
    async with replicas(whole) as (gate, _):
        unbroken = await stream(gate)
    async with replicas(after(5), whole, speakers=Uncounting(answer)) as (gate, _):
        assert events(await stream(gate)) == events(unbroken)


async def test_a_client_that_goes_while_its_tokens_are_counted_leaves_nothing() -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def count_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        asked.set()
        assert await reader.read() == b""
        gone.set()

    async with replicas(after(4)) as (gate, _), scripted(count_slowly) as (_, address):
        gate.add("slow", address)
        gate.router.in_flight["slow"] = 1
        client = asyncio.create_task(stream(gate))
        await asked.wait()
        client.cancel()
        await gone.wait()
        assert gate.router.in_flight == {"slow": 1}


async def test_a_stream_that_fell_back_to_another_model_goes_on_there() -> None:
    speakers = Replicas()
    sections = {"litellm_settings": {"fallbacks": [{MODEL: ["other"]}]}}
    async with (
        door(litellm=sections) as gate,
        scripted(answering()) as (_, broken),
        scripted(speakers.script(after(4))) as (_, first),
        scripted(speakers.script(whole)) as (_, second),
    ):
        gate.add("broken", broken)
        gate.add("first", first, model="other")
        gate.add("second", second, model="other")
        gate.router.in_flight["second"] = 1
        answer = await stream(gate)
    assert text(answer) == TEXT + " "
    assert [asked["model"] for asked in speakers.asked] == ["other", "other"]


async def test_it_may_break_again() -> None:
    async with replicas(whole) as (gate, _):
        unbroken = await stream(gate)
    async with replicas(after(3), after(4), whole) as (gate, speakers):
        answer = await stream(gate)
    assert events(answer) == events(unbroken)
    assert len(speakers.asked) == 3


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"n": 2}, "n"),
    ],
)
async def test_what_cannot_go_on_ends_with_an_error_and_without_done(more: dict[str, Any], why: str) -> None:
    async with replicas(after(4), whole) as (gate, speakers):
        answer = await stream(gate, **more)
    assert len(speakers.asked) == 1
    assert b"[DONE]" not in answer.content
    error = events(answer)[-1]["error"]
    assert error["code"] == "worker_broke"
    assert "w0" in error["message"]
    assert why in error["message"]


async def test_a_client_may_forbid_it() -> None:
    async with replicas(after(4), whole) as (gate, speakers):
        answer = await stream(gate, headers={"x-ichat-no-retry": "1"})
    assert len(speakers.asked) == 1
    assert "x-ichat-no-retry" in events(answer)[-1]["error"]["message"]


async def test_without_another_replica_the_stream_ends_with_an_error() -> None:
    async with replicas(after(4)) as (gate, _):
        answer = await stream(gate)
    assert b"[DONE]" not in answer.content
    message = events(answer)[-1]["error"]["message"]
    assert "w0" in message
    assert message.endswith(f"the stream cannot go on at another one: no other replica of {MODEL} is ready")


async def test_a_stream_too_long_to_be_kept_ends_with_an_error() -> None:
    async with replicas(after(12), whole, resume_kb=1) as (gate, _):
        answer = await stream(gate)
    assert "resume_kb" in events(answer)[-1]["error"]["message"]


async def test_nothing_is_kept_if_not_wanted() -> None:
    async with replicas(after(4), whole, resume_kb=0) as (gate, speakers):
        answer = await stream(gate)
    assert len(speakers.asked) == 1
    assert "error" in events(answer)[-1]


async def test_an_engines_own_refusal_is_passed_on() -> None:
    async with replicas(after(3, REFUSED + DONE), whole) as (gate, speakers):
        answer = await stream(gate)
    assert len(speakers.asked) == 1
    assert events(answer)[-1]["error"]["message"] == "too long"
    assert answer.content.endswith(DONE)


@pytest.mark.parametrize("cut", [after(0), after(0, DIED + DONE), after(0, b"data: {")])
async def test_what_breaks_before_the_first_event_is_simply_asked_again(cut: Cut) -> None:
    async with replicas(cut, whole) as (gate, _):
        answer = await stream(gate, tools=[{"type": "function", "function": {"name": "f"}}])
    assert answer.headers["x-ichat-worker"] == "w1"
    assert answer.headers["x-ichat-attempts"] == "2"
    assert text(answer) == TEXT + " "


async def test_a_stream_that_nothing_lacks_but_its_end_is_ended() -> None:
    async with replicas(lambda stream: stream.removesuffix(DONE), whole) as (gate, speakers):
        answer = await stream(gate)
    assert len(speakers.asked) == 1
    assert answer.content.endswith(DONE)
    assert text(answer) == TEXT + " "


# -- before the first byte -----------------------------------------------------------------------------------------

CRASHED = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 4\r\n\r\noops"


@asynccontextmanager
async def two(first: bytes, second: bytes, **settings: Any) -> AsyncIterator[Gate]:
    async with AsyncExitStack() as stack:
        gate = await stack.enter_async_context(door(**settings))
        for number, answer in enumerate((first, second)):
            _, address = await stack.enter_async_context(scripted(answering(*[answer] * 20)))
            gate.add(f"w{number}", address)
            gate.router.in_flight[f"w{number}"] = number
        yield gate


async def test_a_500_is_asked_of_another_replica() -> None:
    async with two(CRASHED, OK) as gate:
        answer = await gate.chat()
    assert (answer.status_code, answer.text) == (200, "hello")
    assert answer.headers["x-ichat-attempts"] == "2"


async def test_a_500_of_all_is_passed_on_as_it_is() -> None:
    async with two(CRASHED, CRASHED) as gate:
        answer = await gate.chat()
    assert (answer.status_code, answer.text) == (500, "oops")


async def test_a_500_is_passed_on_if_the_client_wants_no_second_try() -> None:
    async with two(CRASHED, OK) as gate:
        answer = await gate.http.post(CHAT, json={"model": MODEL}, headers={"x-ichat-no-retry": "1"})
    assert answer.status_code == 500


async def test_a_replica_that_fails_again_and_again_is_left_alone() -> None:
    async with two(CRASHED, OK, circuit_threshold=2, circuit_cooldown_s=60) as gate:
        attempts = [(await gate.chat()).headers["x-ichat-attempts"] for _ in range(4)]
    assert attempts == ["2", "2", "1", "1"]
