"""A log as server-sent events."""

import asyncio
import json
from typing import Any

import pytest

from monitor.log_stream import PING_S, LogResponse
from monitor.logs import LogBuffer
from tests.doubles import JUMPING
from utils.sse import Event, SSEParser


@pytest.fixture
def anyio_backend() -> object:
    return JUMPING


class Browser:
    """One client of a stream."""

    def __init__(self, response: LogResponse) -> None:
        self.events: list[Event] = []
        self.bytes = b""
        self.headers: dict[bytes, bytes] = {}
        self._parser = SSEParser()
        self._gone = asyncio.Event()
        self._news = asyncio.Event()
        scope = {"type": "http", "method": "GET", "path": "/logs/stream", "headers": []}
        self.stream = asyncio.ensure_future(response(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.headers = dict(message["headers"])
        self.bytes += message.get("body", b"")
        self.events += self._parser.feed(message.get("body", b""))
        self._news.set()

    async def wait_for(self, count: int) -> list[str]:
        """The texts of the lines, once there are so many."""
        while len(self.events) < count:
            self._news.clear()
            await self._news.wait()
        return self.texts()

    def texts(self) -> list[str]:
        return [json.loads(event.data)["text"] for event in self.events]

    def leave(self) -> None:
        self._gone.set()


def filled(count: int) -> LogBuffer:
    buffer = LogBuffer(first_id=1)
    for number in range(1, count + 1):
        buffer.append(f"line {number}", "info", at=float(number))
    return buffer


@pytest.mark.anyio
async def test_history_comes_first_and_then_what_is_said_live() -> None:
    buffer = filled(2)
    browser = Browser(LogResponse(buffer, None))
    assert await browser.wait_for(2) == ["line 1", "line 2"]
    buffer.append("live", "error", at=3.0)
    await browser.wait_for(3)
    assert browser.events[2].event == "log"
    assert browser.events[2].id == "3"
    assert json.loads(browser.events[2].data) == {"id": 3, "time": 3.0, "level": "error", "text": "live"}
    assert browser.headers[b"content-type"].startswith(b"text/event-stream")
    buffer.close()
    await browser.stream


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("last_event_id", "first"),
    [(None, 1), ("", 1), ("0", 1), ("2", 3), ("99", 1), ("-1", 1), ("two", 1), ("²", 1), ("9" * 6000, 1)],
)
async def test_a_reader_goes_on_where_it_was_and_nonsense_is_the_beginning(
    last_event_id: str | None, first: int
) -> None:
    buffer = filled(3)
    buffer.close()
    browser = Browser(LogResponse(buffer, last_event_id))
    await browser.stream
    assert browser.texts() == [f"line {number}" for number in range(first, 4)]


@pytest.mark.anyio
async def test_closing_the_buffer_ends_the_stream_after_its_last_line() -> None:
    buffer = filled(1)
    browser = Browser(LogResponse(buffer, None))
    await browser.wait_for(1)
    buffer.append("last words", "info")
    buffer.close()
    await browser.stream
    assert browser.texts() == ["line 1", "last words"]


@pytest.mark.anyio
async def test_a_reader_that_goes_away_is_let_go_and_its_end_is_told() -> None:
    ends: list[str] = []
    buffer = filled(1)
    browser = Browser(LogResponse(buffer, None, lambda: ends.append("gone")))
    await browser.wait_for(1)
    assert not ends
    browser.leave()
    await browser.stream
    assert ends == ["gone"]
    assert not buffer._readers


@pytest.mark.anyio
async def test_a_silent_log_pings_so_that_nobody_takes_it_for_dead() -> None:
    buffer = LogBuffer()
    browser = Browser(LogResponse(buffer, None))
    await asyncio.sleep(3 * PING_S + 1)
    assert browser.bytes.count(b": ping") == 3
    assert not browser.events
    buffer.close()
    await browser.stream
