"""A mock engine: an OpenAI server that costs next to nothing, because its answers are ready-made bytes.

    python -m bench.mock_engine --interval-ms 5

Prints the port that it listens on, and ends when its standard input does.
"""

import argparse
import asyncio
import sys
from typing import Final

import httptools
import uvloop

from bench.answers import MODEL, answer_to
from utils.common import raise_open_files_limit

ROUTE: Final = b"/v1/chat/completions"
NOT_FOUND: Final = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
BAD_REQUEST: Final = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"
MODELS: Final = b'{"object": "list", "data": [{"id": "%b", "object": "model"}]}' % MODEL.encode()
READY_MADE: Final = {
    b"/health": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    b"/v1/models": b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
    % (len(MODELS), MODELS),
}
"""What routers want to see of a worker before they send it anything."""


class EngineConnection(asyncio.Protocol):
    """One client's connection. A stream's chunks are written one by one, ``interval_s`` apart."""

    def __init__(self, loop: asyncio.AbstractEventLoop, interval_s: float) -> None:
        self._loop = loop
        self._interval_s = interval_s
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.WriteTransport
        self._timer: asyncio.TimerHandle | None = None
        self._url = self._body = b""
        self._writes: tuple[bytes, ...] = ()
        self._next = 0
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:  # HTTP/2, as some routers try
            self._transport.abort()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        url, body = self._url, self._body
        self._url = self._body = b""
        if url != ROUTE:
            self._transport.write(READY_MADE.get(url, NOT_FOUND))
            return
        try:
            self._writes = answer_to(body).writes
        except (ValueError, LookupError, TypeError):
            self._transport.write(BAD_REQUEST)
            return
        self._next = 0
        self._due = self._loop.time()
        self._write_next()

    def _write_next(self) -> None:
        self._transport.write(self._writes[self._next])
        self._next += 1
        if self._next < len(self._writes):
            # In step with the start, but an engine that is late does not send two chunks at once.
            self._due = max(self._due + self._interval_s, self._loop.time() + self._interval_s / 2)
            self._timer = self._loop.call_at(self._due, self._write_next)


async def serve(interval_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: EngineConnection(loop, interval_s), "127.0.0.1", 0, backlog=4096)
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    print(server.sockets[0].getsockname()[1], flush=True)
    await ended.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.mock_engine", description="An engine of ready-made answers.")
    parser.add_argument("--interval-ms", type=float, default=5.0, help="between a stream's chunks")
    raise_open_files_limit()
    uvloop.run(serve(parser.parse_args().interval_ms / 1000))


if __name__ == "__main__":
    main()
