"""The gateway's end of a worker's log: over every break, no line lost and none doubled."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.logs import LogBuffer, LogFollower, LogLine
from tests.doubles import JUMPING, PATIENT
from utils.sse import MAX_EVENT_BYTES

URL = "http://worker:8001/logs/stream"


@pytest.fixture
def anyio_backend() -> object:
    return JUMPING


class Pieces(httpx.AsyncByteStream):
    """An answer's body: its bytes, and then it breaks, ends, or stays open in silence."""

    def __init__(self, body: bytes, then: str, size: int = 7) -> None:
        self._body = body
        self._then = then
        self._size = size

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for at in range(0, len(self._body), self._size):
            yield self._body[at : at + self._size]
        if self._then == "break":
            raise httpx.ReadError("connection reset")
        if self._then == "silence":
            await asyncio.Event().wait()


class LogServer:
    """A worker's log of some lines. Each connection ends after the next number of bytes in ``cuts``, the last never."""

    def __init__(self, count: int, cuts: list[tuple[int, str]]) -> None:
        self.lines = [LogLine(number, float(number), "info", f"line {number}") for number in range(1, count + 1)]
        self._cuts = cuts
        self.requests: list[httpx.Request] = []
        self.times: list[float] = []

    async def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.times.append(asyncio.get_running_loop().time())
        last = int(request.headers.get("last-event-id", "0"))
        sent = b"".join(event(line.to_json(), line.id) for line in self.lines if line.id > last)
        if self._cuts:
            size, how = self._cuts.pop(0)
            if how == "refuse":
                raise httpx.ConnectError("refused")
            return httpx.Response(200, stream=Pieces(sent[:size], how))
        return httpx.Response(200, stream=Pieces(sent, "silence"))


def event(data: str, number: int) -> bytes:
    return f"id: {number}\r\nevent: log\r\ndata: {data}\r\n\r\n".encode()


@asynccontextmanager
async def following(transport: httpx.AsyncBaseTransport, buffer: LogBuffer, **more: Any) -> AsyncIterator[None]:
    async with httpx.AsyncClient(transport=transport) as client:
        task = asyncio.create_task(LogFollower(client, URL, buffer, **more).run())
        yield
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def lines_of(buffer: LogBuffer, count: int) -> list[LogLine]:
    """The first lines to arrive, and proof that no more come in the next ten minutes."""
    async with asyncio.timeout(3600):
        reader = aiter(buffer.open_reader())
        found = [await anext(reader) for _ in range(count)]
    await asyncio.sleep(600)
    return found + buffer.tail(10**6)[count:]


@pytest.mark.anyio
async def test_a_followed_log_is_the_workers_own() -> None:
    server, buffer = LogServer(3, []), LogBuffer(first_id=1)
    async with following(httpx.MockTransport(server.answer), buffer, token="t0ken"):
        assert await lines_of(buffer, 3) == server.lines
    assert server.requests[0].headers["authorization"] == "Bearer t0ken"
    assert "last-event-id" not in server.requests[0].headers


@pytest.mark.anyio
@settings(PATIENT, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from(["break", "end", "refuse"])), max_size=6))
async def test_over_any_breaks_no_line_is_lost_and_none_doubled(cuts: list[tuple[int, str]]) -> None:
    server, buffer = LogServer(6, list(cuts)), LogBuffer(first_id=1)
    async with following(httpx.MockTransport(server.answer), buffer):
        assert await lines_of(buffer, 6) == server.lines


@pytest.mark.anyio
async def test_a_worker_that_is_away_is_asked_less_and_less_often_until_it_speaks_again() -> None:
    server, buffer = LogServer(2, [*[(0, "refuse")] * 6, (100, "end")]), LogBuffer(first_id=1)
    async with following(httpx.MockTransport(server.answer), buffer):
        await lines_of(buffer, 2)
    pauses = [round(after - before, 1) for before, after in zip(server.times, server.times[1:], strict=False)]
    assert pauses[:7] == [0.5, 1, 2, 5, 5, 5, 0.2]


@pytest.mark.anyio
@pytest.mark.parametrize("status", [403, 404, 503])
async def test_a_refusal_is_no_log_and_is_asked_again(status: int) -> None:
    answers = [httpx.Response(status, content=event('{"text": "not a line"}', 1))]
    server, buffer = LogServer(1, []), LogBuffer(first_id=1)

    async def answer(request: httpx.Request) -> httpx.Response:
        return answers.pop() if answers else await server.answer(request)

    async with following(httpx.MockTransport(answer), buffer):
        assert await lines_of(buffer, 1) == server.lines


@pytest.mark.anyio
@pytest.mark.parametrize(
    "data",
    ["plain words", "{}", "[]", "null", '{"text": "x"}', '{"time": "x", "text": "y", "level": "info"}', "[" * 100_000,
     '{"time": 1' + "0" * 400 + ', "text": "y", "level": "info"}'],
    ids=lambda data: str(data)[:20],
)  # fmt: skip
async def test_a_line_of_another_shape_is_kept_as_it_is_and_stops_nothing(data: str) -> None:
    sent = event(data, 1) + event('{"time": 2, "text": "next", "level": "info"}', 2)

    async def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Pieces(sent, "silence", size=4096))

    buffer = LogBuffer()
    async with following(httpx.MockTransport(answer), buffer):
        odd, after = await lines_of(buffer, 2)
    assert data.startswith(odd.text)
    assert odd.text
    assert after.text == "next"


@pytest.mark.anyio
async def test_a_time_that_json_does_not_know_is_not_passed_on() -> None:
    async def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Pieces(event('{"time": NaN, "text": "x", "level": "info"}', 1), "silence"))

    buffer = LogBuffer()
    async with following(httpx.MockTransport(answer), buffer):
        [line] = await lines_of(buffer, 1)
    assert json.loads(line.to_json())["time"] > 0


@pytest.mark.anyio
async def test_an_event_without_measure_breaks_off_and_is_asked_again() -> None:
    server, buffer = LogServer(1, []), LogBuffer(first_id=1)
    endless = [httpx.Response(200, stream=Pieces(b"data: " + b"x" * (2 * MAX_EVENT_BYTES), "silence", 2**20))]

    async def answer(request: httpx.Request) -> httpx.Response:
        return endless.pop() if endless else await server.answer(request)

    async with following(httpx.MockTransport(answer), buffer):
        assert await lines_of(buffer, 1) == server.lines


@pytest.mark.anyio
async def test_a_host_that_is_no_host_is_tried_on_without_a_crash() -> None:
    async with httpx.AsyncClient() as client:
        task = asyncio.create_task(LogFollower(client, "http://[a:b]:1/logs/stream", LogBuffer()).run())
        await asyncio.sleep(100)
        assert not task.done()
        task.cancel()
