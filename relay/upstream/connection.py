"""One connection to a worker: HTTP/1.1 parsed in C, with back-pressure, cancelled by closing.

This is the relay's hot path. It stands on asyncio protocols and httptools because, measured, a general HTTP client
costs several times as much CPU per request and per chunk (doc/performance.md).
"""

import asyncio
from collections.abc import Callable
from typing import Final, cast

import httptools

from relay.headers import Header
from relay.upstream.exchange import BadAnswer, ConnectionBroken, Exchange, UpstreamError
from relay.upstream.known_answer import KnownAnswer

MAX_HEAD_BYTES: Final = 64 * 1024
"""A worker whose status line and headers are longer than this is broken; as is one that sends more than this, beyond
one read, without a byte of the body: interim answers, trailers, extensions of chunks.
"""
MAX_LEARNED: Final = 8
"""Heads of a connection that are learned, each instead of the one before."""
HIGH_WATER: Final = 256 * 1024
"""Unread bytes of an answer above which the worker is not read from, so that a slow client costs bounded memory."""


class Connection(asyncio.Protocol):
    """One TCP connection to a worker, with at most one exchange on it at a time."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_idle: Callable[["Connection"], None],
        on_lost: Callable[["Connection"], None],
    ) -> None:
        self.loop = loop
        self.idle_since = 0.0
        self.used = False
        self.closed = False
        self.is_paused = False
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._headers: list[Header] = []
        self._bare = 0  # bytes since the last that were of use
        self._is_between_chunks = False  # all that was read is parsed, and ended with a chunk that was not the last
        self._known: KnownAnswer | None = None
        self._learns = MAX_LEARNED
        self._until_close = False
        self._out_of_step = False
        self._keep_alive = False

    def send(self, exchange: Exchange) -> None:
        """Ask; what comes back goes to the exchange."""
        assert self._transport is not None
        exchange.connection = self
        self._exchange = exchange
        self._headers = []
        self._bare = 0
        self._is_between_chunks = False
        if self.closed:
            exchange.fail(ConnectionBroken("closed the connection"))
            return
        # One write, one packet for what fits; a large body is not copied for it.
        if len(exchange.body) < HIGH_WATER:
            self._transport.write(exchange.head + exchange.body)
        else:
            self._transport.write(exchange.head)
            self._transport.write(exchange.body)

        if not exchange.is_sent:
            exchange.reader.hold(False)

    def write(self, piece: bytes) -> None:
        if self._transport is not None and not self.closed:
            self._transport.write(piece)

    def pause_writing(self) -> None:
        if self._exchange is not None and not self._exchange.is_sent:
            self._exchange.reader.hold(True)

    def resume_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.reader.hold(False)

    def release(self, exchange: Exchange) -> None:
        """The exchange has ended: this connection is free for another if the answer was whole, else it is cut."""
        if self._exchange is not exchange:
            return
        self._exchange = None
        reusable = exchange.done and exchange.is_sent and not (self.closed or self._until_close or self._out_of_step)
        if reusable and self._keep_alive and not self._is_sending:
            if self.is_paused:
                self.resume()
            self.used = True
            self.idle_since = self.loop.time()
            self._on_idle(self)
        else:
            self.abort()

    @property
    def _is_sending(self) -> bool:
        """The worker has answered before it took the whole request, and may never take the rest."""
        return self._transport is not None and self._transport.get_write_buffer_size() > 0

    def abort(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def resume(self) -> None:
        if self._transport is not None:
            self.is_paused = False
            self._transport.resume_reading()

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            self.abort()  # a worker that talks without having been asked
            return
        if self._is_between_chunks:
            # The parser need not know of a chunk that is whole: it stays where it is. What waits in the exchange waits
            # for a reader without room, who would not take this either.
            shortcut = exchange.shortcut
            if shortcut is not None and shortcut(data):
                exchange.heard = True
                return
            self._is_between_chunks = False
        is_first = self._bare == 0 and not exchange.started
        if is_first and self._known is not None and (answer := self._known.read(data)) is not None:
            self._keep_alive, self._until_close = True, False
            exchange.take_whole(*answer)
            return
        self._bare += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not exchange.done:
                self._break(BadAnswer(f"answered something that is no HTTP/1.1: {error}"))
                return
            self._out_of_step = True  # garbage behind a whole answer
        if self._bare > MAX_HEAD_BYTES and not exchange.done:
            self._break(BadAnswer(f"sent headers of more than {MAX_HEAD_BYTES} bytes"))
            return
        if self._is_between_chunks:  # or within the next one's head, which ends so only when the parser has it
            self._is_between_chunks = data.endswith(b"\r\n")
        elif is_first and exchange.done and self._learns:
            self._learn(data, exchange)
        exchange.arrive()

    def _learn(self, data: bytes, exchange: Exchange) -> None:
        """From an answer that came in one read; not for ever from a worker whose heads all differ."""
        self._learns -= 1
        if exchange.status == 200 and self._keep_alive and not self._out_of_step:
            self._known = KnownAnswer.of(data, exchange.headers)

    def eof_received(self) -> bool:
        if self._until_close and self._exchange is not None and self._exchange.started:
            self._exchange.done = True
            self._exchange.arrive()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._exchange is not None:
            self._exchange.fail(ConnectionBroken(f"closed the connection{f' ({exc})' if exc else ''}"))
        # Each holds the other: without this both wait for the garbage collector, which seldom comes.
        self._parser = None
        self._on_lost(self)

    def _break(self, error: UpstreamError) -> None:
        self.abort()
        if self._exchange is not None:
            self._exchange.fail(error)

    # -- httptools -------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        # Bytes after a whole answer belong to no request: they must never become the next one's answer.
        if self._exchange is not None and self._exchange.done:
            self._out_of_step = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._exchange is not None and not self._exchange.started:  # what follows the body are no headers of it
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        exchange = self._exchange
        status = self._parser.get_status_code()
        if status < 100:
            raise ValueError(f"there is no status {status}")
        if exchange is None or status < 200 or self._out_of_step:
            self._headers = []  # an interim answer such as 100 Continue: the real one follows
            return
        exchange.status = status
        exchange.headers, self._headers = self._headers, []
        exchange.started = True
        self._bare = 0
        self._until_close = status not in (204, 304) and ends_with_connection(exchange.headers)

    def on_body(self, body: bytes) -> None:
        exchange = self._exchange
        if exchange is None or self._out_of_step:
            return
        self._bare = 0
        if exchange.add(body) > HIGH_WATER and not self.is_paused and self._transport:
            self.is_paused = True
            self._transport.pause_reading()

    def on_chunk_header(self) -> None:
        self._is_between_chunks = False

    def on_chunk_complete(self) -> None:
        self._is_between_chunks = True

    def on_message_complete(self) -> None:
        self._is_between_chunks = False
        if self._exchange is not None and self._exchange.started:
            self._exchange.done = True
            # To be asked here: the parser has forgotten it when the next call begins.
            self._keep_alive = self._parser.should_keep_alive()


def ends_with_connection(headers: list[Header]) -> bool:
    """Whether a body has neither a length nor chunks (RFC 9112, 6.3)."""
    for name, value in headers:
        if name == b"content-length":
            return False
        if name == b"transfer-encoding":
            return value.rpartition(b",")[2].strip().lower() != b"chunked"
    return True
