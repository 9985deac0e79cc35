"""A log buffer as a stream of server-sent events: the same on a worker and on the gateway."""

from collections.abc import AsyncIterator, Callable
from typing import Final

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from monitor.logs import LogBuffer, Reader

PING_S: Final = 15
"""Shorter than what proxies between take for a dead connection."""


class LogResponse(EventSourceResponse):
    """History first, then live; ends when the buffer is closed. ``last_event_id``: go on after that line."""

    def __init__(self, buffer: LogBuffer, last_event_id: str | None, on_end: Callable[[], None] = lambda: None) -> None:
        given = last_event_id or ""
        self._buffer = buffer
        self._on_end = on_end
        is_number = given.isascii() and given.isdigit() and len(given) < 20
        self._reader = buffer.open_reader(int(given) if is_number else 0)
        super().__init__(events(self._reader), ping=PING_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._buffer.close_reader(self._reader)
            self._on_end()


async def events(reader: Reader) -> AsyncIterator[ServerSentEvent]:
    async for line in reader:
        yield ServerSentEvent(data=line.to_json(), id=str(line.id), event="log")
