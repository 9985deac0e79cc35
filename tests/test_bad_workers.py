"""Workers that send what they must not: their client learns of it, nobody else does, the connection is not reused."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.upstream.connection import MAX_HEAD_BYTES
from tests.doubles import PATIENT
from tests.relay_double import Gate, door
from tests.scripted import OK, Script, ScriptedWorker, answering, read_request, scripted
from tests.wire import Answer, body_of, nothing_left, request, settled, wire

pytestmark = pytest.mark.anyio

EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
EVIL = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
ONE = b'data: {"choices": [{"index": 0, "delta": {"content": "one"}}]}\n\n'
END = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def head(*lines: bytes, status: bytes = b"200 OK", version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join([b"%b %b" % (version, status), *lines, b"", b""])


IS_502 = {
    "garbage": b"\x00\x01SSH-2.0\r\n",
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\ncontent-le",
    "no status": b"HTTP/1.1 abc\r\n\r\n",
    "status below 100": head(b"content-length: 4", status=b"000 No") + b"evil",
    "status below 100, then another": head(b"content-length: 4", status=b"000 No") + b"evil" + OK,
    "switching protocols": head(b"upgrade: x", b"connection: upgrade", status=b"101 Switching") + EVIL,
    "length and chunks": head(b"content-length: 5", b"transfer-encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n",
    "chunks and length": head(b"transfer-encoding: chunked", b"content-length: 5") + b"5\r\nhello\r\n0\r\n\r\n",
    "two lengths": head(b"content-length: 5", b"content-length: 9") + b"hello" + EVIL,
    "odd length": head(b"content-length: +5") + b"hello",
    "length overflow": head(b"content-length: 99999999999999999999999") + b"hello",
    "folded header": head(b"x-odd: a", b" b", b"content-length: 5") + b"hello",
    "bare CR": head(b"x-odd: a\rset-cookie: b", b"content-length: 5") + b"hello",
    "NUL": head(b"x-odd: a\0b", b"content-length: 5") + b"hello",
    "odd name": head(b"x odd: a", b"content-length: 5") + b"hello",
    "bare LF": b"HTTP/1.1 200 OK\ncontent-length: 5\n\nhello",
    "nothing but interim answers": head(status=b"100 Continue") * 3000,
    "a head of a megabyte": b"HTTP/1.1 200 OK\r\n" + b"x-odd: aaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 30_000,
    "a header of a megabyte": b"HTTP/1.1 200 OK\r\nx-odd: " + b"a" * 1024 * 1024,
}
IS_AN_ANSWER = {
    "an answer": (OK, 200, b"hello"),
    "two answers": (OK + EVIL, 200, b"hello"),
    "one and a half": (OK + EVIL[:20], 200, b"hello"),
    "a longer body than said": (OK + b"evil", 200, b"hello"),
    "a longer body, and the end": (head(b"content-length: 5", b"connection: close") + b"helloevil", 200, b"hello"),
    "a body after 204": (head(status=b"204 No") + b"evil", 204, b""),
    "204 with a length": (head(b"content-length: 4", status=b"204 No") + b"evil", 204, b""),
    "204 in chunks": (head(b"transfer-encoding: chunked", status=b"204 No") + b"4\r\nevil\r\n0\r\n\r\n", 204, b""),
    "a body after 304": (head(b"content-length: 4", status=b"304 Not") + b"evil", 304, b""),
    "garbage behind chunks": (CHUNKED + b"5\r\nhello\r\n0\r\n\r\n\0\0", 200, b"hello"),
    "chunked, and another answer": (CHUNKED + b"5\r\nhello\r\n0\r\n\r\n" + EVIL, 200, b"hello"),
    "interim answers first": (head(status=b"100 Continue") * 20 + head(b"x: y", status=b"103") + OK, 200, b"hello"),
    "old": (head(b"content-length: 5", version=b"HTTP/1.0") + b"hello", 200, b"hello"),
    "old, until the end": (head(version=b"HTTP/1.0") + b"hello", 200, b"hello"),
    "unknown encoding, until the end": (head(b"transfer-encoding: xchunked") + b"hello", 200, b"hello"),
    "unknown status": (head(b"content-length: 5", status=b"799 Odd") + b"hello", 799, b"hello"),
    "events of a length": (EVENTS + b"content-length: %d\r\n\r\n" % len(ONE + END) + ONE + END, 200, ONE + END),
    "events that are said to be packed": (
        EVENTS + b"content-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x8b\x08\x00", 200, b"\x1f\x8b\x08\x00"
    ),
    "trailers": (CHUNKED + b"5\r\nhello\r\n0\r\nset-cookie: evil\r\n\r\n", 200, b"hello"),
}  # fmt: skip
WHOLE = ("an answer", "interim answers first", "unknown status", "events of a length", "trailers",
         "events that are said to be packed")  # fmt: skip
"""Nothing is wrong with these."""
IS_CUT = {
    "a shorter body than said": head(b"content-length: 9") + b"hello",
    "a broken chunk": CHUNKED + b"5\r\nhello\r\nnonsense\r\n",
    "a chunk that overflows": CHUNKED + b"5\r\nhello\r\n1ffffffffffffffff\r\n",
    "a chunk of a negative size": CHUNKED + b"5\r\nhello\r\n-5\r\nhello\r\n0\r\n\r\n",
    "a chunk without its end": CHUNKED + b"5\r\nhelloevil\r\n0\r\n\r\n",
    "an end within chunks": CHUNKED + b"5\r\nhello\r\n",
    "trailers of a megabyte": CHUNKED + b"5\r\nhello\r\n0\r\n" + b"x-odd: aaaaaaaaaaaaaaaaaaaaaaa\r\n" * 35_000,
    "a chunk extension of a megabyte": CHUNKED + b"5\r\nhello\r\n5;" + b"a" * 1024 * 1024,
    "events that break": EVENTS + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\nzz" % (len(ONE), ONE),
    "events shorter than their length": EVENTS + b"content-length: 999\r\n\r\n" + ONE,
    "events of a length, without their end": EVENTS + b"content-length: %d\r\n\r\n" % len(ONE) + ONE,
}


class BadOnce:
    """Sends it on its first connection, then waits there for what else comes, or ends; echoes whatever else it gets."""

    def __init__(self, answer: bytes, *, ends: bool) -> None:
        self.is_reused = False
        self._answer = answer
        self._ends = ends
        self._is_first = True

    async def script(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_first, self._is_first = self._is_first, False
        if is_first:
            await read_request(reader)
            writer.write(self._answer)
            await writer.drain()
            if self._ends:
                return
        while True:
            body = (await read_request(reader)).partition(b"\r\n\r\n")[2]
            self.is_reused = self.is_reused or is_first
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))


Stage = tuple[Gate, ScriptedWorker]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def one_worker(**settings: Any) -> AsyncIterator[Stage]:
    """A door before one bad worker, that is asked once for each request, and whose circuit stays closed."""
    calm: dict[str, Any] = {"max_attempts": 1, "circuit_threshold": 10**6}
    async with door(**calm, **settings) as gate, scripted(answering()) as (worker, address):
        gate.add("bad-one", address)
        yield gate, worker


@pytest.fixture(scope="module")
async def stage(anyio_backend: str) -> AsyncIterator[Stage]:
    async with nothing_left(), one_worker() as pair:
        yield pair


@pytest.fixture(scope="module")
async def hasty_stage(stage: Stage) -> AsyncIterator[Stage]:
    """Closes before the other one, which sees to it that nothing of both is left."""
    async with one_worker(answer_timeout_s=0.15) as pair:
        yield pair


@asynccontextmanager
async def bad(stage: Stage, script: Script) -> AsyncIterator[Stage]:
    """The worker follows this script, on new connections; nothing is left under way."""
    gate, worker = stage
    gate.upstream.forget(gate.address_of("bad-one"))
    worker.script, worker.connections = script, 0
    worker.closed.clear()
    yield stage
    await settled(gate)


async def ask_bad(gate: Gate) -> list[Answer]:
    """What a client hears of the bad answer and of its next request, if it may ask it on the same connection; meanwhile
    another client gets its own answer, and so does one that comes later.
    """
    async with wire(gate) as one, wire(gate) as other:
        await one.send(request(body_of("mine")))
        first = await one.answer()
        for each in (other, one):
            await each.send(request(body_of("next"), b"connection: close"))
        assert [answer.body for answer in await other.rest()] == [body_of("next")]
        rest = await one.rest()
    assert [answer.body for answer in rest] in ([], [body_of("next")])
    assert all(b"set-cookie" not in answer.headers for answer in [first, *rest] if answer)
    return [first, *rest] if first else rest


def check_502(answer: Answer) -> None:
    assert answer.status == 502
    error = json.loads(answer.body)["error"]
    assert "bad-one" in error["message"] and error["code"] in ("bad_worker_answer", "worker_broke")


@pytest.mark.parametrize("shape", IS_502)
async def test_what_is_no_answer_is_a_502_that_names_the_worker(stage: Stage, shape: str) -> None:
    script = BadOnce(IS_502[shape], ends=shape in ("nothing", "half a head", "garbage"))
    async with bad(stage, script.script) as (gate, _):
        answers = await ask_bad(gate)
    check_502(answers[0])
    assert len(answers) == 2
    assert not script.is_reused


@pytest.mark.parametrize("shape", IS_AN_ANSWER)
async def test_what_is_an_answer_arrives_without_what_is_around_it(stage: Stage, shape: str) -> None:
    sent, status, body = IS_AN_ANSWER[shape]
    script = BadOnce(sent, ends=shape.endswith("until the end"))
    async with bad(stage, script.script) as (gate, _):
        first, second = await ask_bad(gate)
    assert (first.status, first.body) == (status, body)
    assert second.status == 200
    assert script.is_reused == (shape in WHOLE)


@pytest.mark.parametrize("shape", IS_CUT)
async def test_what_breaks_off_is_never_taken_for_whole(stage: Stage, shape: str) -> None:
    async with bad(stage, BadOnce(IS_CUT[shape], ends=True).script) as (gate, _):
        answers = await ask_bad(gate)
    first = answers[0] if answers else None
    if first is not None and first.status == 200:
        assert shape.startswith("events")
        assert first.body.startswith(ONE) and b"[DONE]" not in first.body and b'"error"' in first.body
    elif first is not None:
        check_502(first)


def never(first: bytes, then: bytes, pause_s: float = 0.0) -> Callable[[list[int]], Script]:
    """A worker that does not come to an end; what it has got rid of is counted."""

    def of(sent: list[int]) -> Script:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(first)
            while then:
                writer.write(then)
                await writer.drain()
                sent.append(len(then))
                await asyncio.sleep(pause_s)
            await reader.read()

        return script

    return of


ENDLESS = {
    "a header": never(b"HTTP/1.1 200 OK\r\nx-odd: ", b"a" * 10_000),
    "headers": never(b"HTTP/1.1 200 OK\r\n", b"x-odd: a\r\n" * 1000),
    "interim answers": never(b"", head(status=b"100 Continue") * 400),
}


@pytest.mark.parametrize("shape", ENDLESS)
async def test_a_head_without_end_is_a_502_before_much_of_it_is_read(stage: Stage, shape: str) -> None:
    sent: list[int] = []
    async with bad(stage, ENDLESS[shape](sent)) as (gate, worker):
        async with wire(gate) as one:
            await one.send(request(body_of("mine")))
            answer = await one.answer()
            assert answer is not None
            check_502(answer)
        await asyncio.wait_for(worker.closed.wait(), 5)
    assert sum(sent) < MAX_HEAD_BYTES + 16 * 1024 * 1024  # what sockets hold comes on top


SLOW = {
    "silence": never(b"", b""),
    "a slow head": never(b"HTTP/1.1 200 OK\r\nx-odd: ", b"a", 0.005),
    "slow interim answers": never(b"", head(status=b"100 Continue"), 0.005),
}


@pytest.mark.parametrize("shape", SLOW)
async def test_an_answer_that_does_not_begin_is_a_504(hasty_stage: Stage, shape: str) -> None:
    async with bad(hasty_stage, SLOW[shape]([])) as (gate, worker):
        async with wire(gate) as one:
            await one.send(request(body_of("mine")))
            answer = await one.answer()
            assert answer is not None
            assert (answer.status, json.loads(answer.body)["error"]["code"]) == (504, "worker_timeout")
        await asyncio.wait_for(worker.closed.wait(), 5)


SLOW_REST = {
    "silence": never(CHUNKED + b"5\r\nhello\r\n", b""),
    "a slow trailer": never(CHUNKED + b"5\r\nhello\r\n0\r\nx-odd: ", b"a", 0.005),
    "a slow chunk extension": never(CHUNKED + b"5\r\nhello\r\n5;", b"a", 0.005),
}


@pytest.mark.parametrize("shape", SLOW_REST)
async def test_an_answer_that_does_not_go_on_is_cut(hasty_stage: Stage, shape: str) -> None:
    async with bad(hasty_stage, SLOW_REST[shape]([])) as (gate, worker):
        async with wire(gate) as one:
            await one.send(request(body_of("mine")))
            assert await one.rest() == []
        await asyncio.wait_for(worker.closed.wait(), 5)


async def test_a_slow_answer_that_goes_on_is_no_silence(hasty_stage: Stage) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(CHUNKED)
        for _ in range(20):
            writer.write(b"1\r\na\r\n")
            await asyncio.sleep(0.02)
        writer.write(b"0\r\n\r\n")

    async with bad(hasty_stage, script) as (gate, _), wire(gate) as one:
        await one.send(request(body_of("mine")))
        answer = await one.answer()
        assert answer is not None and answer.body == b"a" * 20


async def test_an_answer_before_the_request_was_taken_ends_the_connection(stage: Stage) -> None:
    """The worker may never read the rest of the request, or take it for the next one."""
    answered = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await answered.wait()
        await reader.read(100)

    body = b'{"model": "m", "prompt": "%b"}' % (b"x" * 16 * 1024 * 1024)
    async with bad(stage, script) as (gate, worker), wire(gate) as one:
        for count in (1, 2):
            await one.send(request(body))
            answer = await one.answer()
            assert answer is not None and answer.body == b"hello"
            assert worker.connections == count
        answered.set()


async def test_an_endless_answer_to_one_who_was_promised_a_stream_is_not_kept(stage: Stage) -> None:
    """It had to be kept whole, to be told as one event."""
    asked, told = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        asked.set()
        await told.wait()
        writer.write(head(status=b"400 Bad"))
        while True:
            writer.write(b"x" * 10_000)
            await writer.drain()

    async with bad(stage, script) as (gate, worker), wire(gate) as one:
        await one.send(request(body_of("mine")))
        await asyncio.wait_for(asked.wait(), 5)
        (flight,) = gate.relay._flights.values()
        flight.tell(b": queued\n\n")
        told.set()
        answer = await one.answer()
        assert answer is not None
        assert answer.body.startswith(b': queued\n\ndata: {"error"') and b"[DONE]" not in answer.body
        await asyncio.wait_for(worker.closed.wait(), 5)


@settings(PATIENT, max_examples=60)
@given(
    shape=st.sampled_from(sorted(IS_AN_ANSWER)),
    edits=st.lists(st.tuples(st.integers(0, 120), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=3),
)
async def test_a_damaged_answer_harms_nobody_else(
    stage: Stage, shape: str, edits: list[tuple[int, int, bytes]]
) -> None:
    damaged = IS_AN_ANSWER[shape][0]
    for at, gone, put in edits:
        damaged = damaged[:at] + put + damaged[at + gone :]
    async with bad(stage, BadOnce(damaged, ends=True).script) as (gate, _):
        await ask_bad(gate)
