"""Logs of workers: a buffer with history and live readers, and a follower that fills one from a worker's stream."""

import asyncio
import json
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Final

import httpx

from utils.logger import EventLogger
from utils.sse import Event, SSEParser

HISTORY_LINES: Final = 2000
READER_LINES: Final = 1000
"""Lines that wait for a slow reader; what comes beyond is lost to it, and it is told how many."""
MAX_LINE: Final = 8192
"""Characters of a line that are kept."""
RECONNECT_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
CONNECT_TIMEOUT_S: Final = 5.0
SILENCE_TIMEOUT_S: Final = 60.0
"""A worker pings every 15 s: a stream this silent is dead."""

logger = EventLogger("logs")


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a worker's output. ``id`` grows by one a line; ``time`` is seconds since the epoch."""

    id: int
    time: float
    level: str
    text: str

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


class Reader:
    """One reader of a buffer: a bounded queue of lines, and a count of those that did not fit."""

    def __init__(self, lines: list[LogLine], lost: int = 0) -> None:
        self._lines = deque(lines)
        self._lost = lost
        self._more = asyncio.Event()
        self._ended = False
        if lines:
            self._more.set()

    def put(self, line: LogLine) -> None:
        if len(self._lines) >= READER_LINES + HISTORY_LINES:
            self._lines.popleft()
            self._lost += 1
        self._lines.append(line)
        self._more.set()

    def end(self) -> None:
        self._ended = True
        self._more.set()

    async def __aiter__(self) -> AsyncIterator[LogLine]:
        while True:
            await self._more.wait()
            self._more.clear()
            while self._lines:
                if self._lost:
                    lost, self._lost = self._lost, 0
                    first = self._lines[0]
                    text = f"[{lost} lines lost: this reader was too slow, or away]"
                    yield LogLine(first.id - 1, first.time, "warning", text)
                yield self._lines.popleft()
            if self._ended:
                return


class LogBuffer:
    """The last lines of one worker, and its live readers. Writers never wait. To be used from one event loop."""

    def __init__(self, history: int = HISTORY_LINES, first_id: int | None = None) -> None:
        """Ids begin with the time in milliseconds: those of a buffer before a restart are not among this one's."""
        self._history: deque[LogLine] = deque(maxlen=history)
        self._readers: set[Reader] = set()
        self._first_id = self._next_id = int(time.time() * 1000) if first_id is None else first_id
        self._closed = False

    def append(self, text: str, level: str, at: float | None = None) -> LogLine:
        line = LogLine(self._next_id, time.time() if at is None else at, level, text[:MAX_LINE])
        self._next_id += 1
        self._history.append(line)
        for reader in self._readers:
            reader.put(line)
        return line

    def tail(self, count: int) -> list[LogLine]:
        return list(self._history)[max(0, len(self._history) - count) :]

    def open_reader(self, after: int = 0) -> Reader:
        """A reader of all after line ``after`` (0: the whole history), then live. Close it with ``close_reader``.

        An ``after`` that is no line of this buffer comes from another life of it: the reader gets the whole history.
        """
        if not self._first_id <= after < self._next_id:
            after = 0
        lines = [line for line in self._history if line.id > after]
        reader = Reader(lines, lost=lines[0].id - after - 1 if after and lines else 0)
        self._readers.add(reader)
        if self._closed:
            reader.end()
        return reader

    def close_reader(self, reader: Reader) -> None:
        self._readers.discard(reader)

    def close(self) -> None:
        """Ends all readers after what they have: an open stream must not keep a server from stopping."""
        self._closed = True
        for reader in self._readers:
            reader.end()


class LogFollower:
    """Follows a worker's ``/logs/stream`` into a buffer, over reconnects, losing and doubling no line."""

    def __init__(self, client: httpx.AsyncClient, url: str, buffer: LogBuffer, *, token: str = "") -> None:
        self._client = client
        self._url = url
        self._buffer = buffer
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._last_id = ""

    async def run(self) -> None:
        """Follows until cancelled."""
        failures = 0
        while True:
            before = self._last_id
            try:
                await self._follow()
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                logger.debug("stream_ended", url=self._url, error=f"{type(error).__name__}: {error}")
            failures = 0 if self._last_id != before else failures + 1
            await asyncio.sleep(RECONNECT_S[min(failures, len(RECONNECT_S) - 1)])

    async def _follow(self) -> None:
        headers = dict(self._headers)
        if self._last_id:
            headers["last-event-id"] = self._last_id
        timeout = httpx.Timeout(CONNECT_TIMEOUT_S, read=SILENCE_TIMEOUT_S)
        async with self._client.stream("GET", self._url, headers=headers, timeout=timeout) as answer:
            if answer.status_code != 200:
                raise ValueError(f"HTTP {answer.status_code}")
            parser = SSEParser()
            async for chunk in answer.aiter_raw():
                for event in parser.feed(chunk):
                    self._take(event)

    def _take(self, event: Event) -> None:
        try:
            line = json.loads(event.data)
            text, level, at = str(line["text"]), str(line["level"]), float(line["time"])
        except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
            text, level, at = event.data, "info", math.nan  # not of an iChat worker: its words are kept as they are
        self._buffer.append(text, level, at if math.isfinite(at) else None)
        self._last_id = event.id
