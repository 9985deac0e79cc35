"""One connection to a worker: HTTP/1.1 parsed in C, streamed with back-pressure, cancelled by closing.

This is the relay's hot path. It stands on asyncio protocols and httptools because, measured, a general HTTP client
costs several times as much CPU per request and per chunk (doc/performance.md).
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, cast

import httptools

MAX_HEAD_BYTES: Final = 64 * 1024
"""A worker whose status line and headers are longer than this is broken."""
HIGH_WATER: Final = 256 * 1024
"""Unread bytes of an answer above which the worker is not read from, so that a slow client costs bounded memory."""


class UpstreamError(Exception):
    """A worker could not be asked, or did not answer whole. ``str()`` says what happened, without the address."""


class ConnectFailed(UpstreamError):
    """No connection: nothing was sent. ``refused``: nobody listens there, so the worker's process is gone."""

    def __init__(self, message: str, *, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


class ConnectionBroken(UpstreamError):
    """The connection ended within a request or an answer."""


class BadAnswer(UpstreamError):
    """What came back is no HTTP/1.1."""


class WorkerSilent(UpstreamError):
    """Nothing came for ``answer_timeout_s``."""


class Sink(Protocol):
    """Where an answer's body goes."""

    is_full: bool
    """``drain`` before pushing more."""

    def push(self, piece: bytes, last: bool) -> None: ...

    def give_up(self) -> None:
        """It has had no room for as long as a worker may be silent."""

    async def drain(self) -> None: ...


class Exchange:
    """One request and its answer. After ``Upstream.open``: ``status``, ``headers``, then ``send_to`` for the body."""

    __slots__ = ("_chunks", "_connection", "_is_delivered", "_silent_s", "_sink", "_size", "_waiter", "done", "error",
                 "headers", "heard", "started", "status")  # fmt: skip

    def __init__(self, connection: "Connection") -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.started = False  # the head of the answer is here
        self.done = False  # the whole answer is here
        self.error: UpstreamError | None = None
        self.heard = True  # something has come since silence was last measured
        self._silent_s = 0.0
        self._connection = connection
        self._chunks: list[bytes] = []
        self._size = 0
        self._sink: Sink | None = None
        self._is_delivered = False
        self._waiter: asyncio.Future[None] | None = None

    async def head(self) -> None:
        """Waits for status and headers. Raises UpstreamError."""
        while not self.started:
            if self.error is not None:
                raise self.error
            await self._wait()

    async def send_to(self, sink: Sink) -> None:
        """The whole body to ``sink``, piece by piece as it comes. Raises UpstreamError if it ends too soon.

        While the sink has room, pieces go to it straight from the socket's callback: no task wakes up for them.
        """
        self._sink = sink
        try:
            while True:
                self._flush(sink)
                if self._is_delivered:
                    return
                if self.error is not None:
                    raise self.error
                if sink.is_full:
                    await sink.drain()
                else:
                    await self._wait()
        finally:
            self._sink = None

    def close(self) -> None:
        """Give the connection back to the pool if the answer is whole, else cut it."""
        self._connection.release(self)

    @property
    def buffered(self) -> int:
        """Bytes of the body that have come and were not passed on yet."""
        return self._size

    # -- called by the connection ----------------------------------------------------------------------------------

    def arrive(self) -> None:
        """Something has come: the head, a part of the body, its end."""
        self.heard = True
        sink = self._sink
        if sink is None or sink.is_full:
            self._wake()
            return
        self._flush(sink)
        if self._is_delivered or sink.is_full:
            self._wake()

    def add(self, body: bytes) -> bool:
        """Take a piece of the body; whether the connection should pause."""
        self._chunks.append(body)
        self._size += len(body)
        return self._size > HIGH_WATER

    def fail(self, error: UpstreamError) -> None:
        if not self.done and self.error is None:
            self.error = error
        self._wake()

    def measure_silence(self, passed_s: float, limit_s: float) -> None:
        """``passed_s`` have gone by since the last call. A worker that is not read from cannot be heard."""
        if self.heard:
            self.heard = False
            self._silent_s = 0.0
            return
        self._silent_s += passed_s
        if self._silent_s < limit_s:
            return
        if self._sink is not None and self._sink.is_full:
            self._sink.give_up()
        else:
            self.fail(WorkerSilent(f"sent nothing for {limit_s:g} s"))

    def _flush(self, sink: Sink) -> None:
        chunks = self._chunks
        if chunks:
            piece = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            self._chunks = []
            self._size = 0
            self._is_delivered = last = self.done
            sink.push(piece, last)
            if self._connection.is_paused:
                self._connection.resume()
        elif self.done and not self._is_delivered:
            self._is_delivered = True
            sink.push(b"", True)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = self._connection.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class Connection(asyncio.Protocol):
    """One TCP connection to a worker, with at most one exchange on it at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_idle: Callable[["Connection"], None]) -> None:
        self.loop = loop
        self.idle_since = 0.0
        self.used = False
        self.closed = False
        self._on_idle = on_idle
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_size = 0
        self._until_close = False
        self.is_paused = False
        self._out_of_step = False
        self._keep_alive = False

    def send(self, head: bytes, body: bytes) -> Exchange:
        assert self._transport is not None
        exchange = Exchange(self)
        if self.closed:
            exchange.fail(ConnectionBroken("closed the connection"))
            return exchange
        self._exchange = exchange
        self._headers = []
        self._head_size = 0
        # One write, one packet for what fits; a large body is not copied for it.
        if len(body) < HIGH_WATER:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
        return exchange

    def release(self, exchange: Exchange) -> None:
        if self._exchange is not exchange:
            return
        self._exchange = None
        reusable = exchange.done and not (self.closed or self._until_close or self._out_of_step)
        if reusable and self._keep_alive:
            self.resume()
            self.used = True
            self.idle_since = self.loop.time()
            self._on_idle(self)
        else:
            self.abort()

    def abort(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def resume(self) -> None:
        if self.is_paused and self._transport is not None:
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
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._break(BadAnswer(f"answered something that is no HTTP/1.1: {error}"))
            return
        if not exchange.started:
            self._head_size += len(data)
            if self._head_size > MAX_HEAD_BYTES:
                self._break(BadAnswer(f"sent headers of more than {MAX_HEAD_BYTES} bytes"))
                return
        exchange.arrive()

    def eof_received(self) -> bool:
        if self._until_close and self._exchange is not None and self._exchange.started:
            self._exchange.done = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._exchange is not None:
            self._exchange.fail(ConnectionBroken(f"closed the connection{f' ({exc})' if exc else ''}"))

    def _break(self, error: UpstreamError) -> None:
        if self._exchange is not None:
            self._exchange.fail(error)
        self.abort()

    # -- httptools -------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        # Bytes after a whole answer belong to no request: they must never become the next one's answer.
        if self._exchange is not None and self._exchange.done:
            self._out_of_step = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        exchange = self._exchange
        status = self._parser.get_status_code()
        if exchange is None or status < 200 or self._out_of_step:
            self._headers = []  # an interim answer such as 100 Continue: the real one follows
            return
        exchange.status = status
        exchange.headers, self._headers = self._headers, []  # what follows the body are no headers of it
        exchange.started = True
        self._until_close = status not in (204, 304) and ends_with_connection(exchange.headers)

    def on_body(self, body: bytes) -> None:
        exchange = self._exchange
        if exchange is None or self._out_of_step:
            return
        if exchange.add(body) and not self.is_paused and self._transport:
            self.is_paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._exchange is not None and self._exchange.started:
            self._exchange.done = True
            # To be asked here: the parser has forgotten it when the next call begins.
            self._keep_alive = self._parser.should_keep_alive()


def ends_with_connection(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a body has neither a length nor chunks (RFC 9112, 6.3)."""
    for name, value in headers:
        if name == b"content-length":
            return False
        if name == b"transfer-encoding":
            return value.rpartition(b",")[2].strip().lower() != b"chunked"
    return True
