"""Connections to workers: pooled, HTTP/1.1 parsed in C, streamed with back-pressure, cancelled by closing.

This is the relay's hot path. It stands on asyncio protocols and httptools because, measured, a general HTTP client
costs several times as much CPU per request and per chunk (doc/performance.md).
"""

import asyncio
from collections.abc import Callable
from typing import Final, cast

import httptools

MAX_HEAD_BYTES: Final = 64 * 1024
"""A worker whose status line and headers are longer than this is broken."""
HIGH_WATER: Final = 256 * 1024
"""Unread bytes of an answer above which the worker is not read from, so that a slow client costs bounded memory."""
MAX_IDLE_S: Final = 60.0
"""A pooled connection unused for longer is not trusted: something between may have dropped it silently."""
MAX_IDLE_CONNECTIONS: Final = 1024
"""Per worker; more than this many idle connections are closed."""

Address = tuple[str, int]


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


class Exchange:
    """One request and its answer. After ``Upstream.open``: ``status``, ``headers``, then ``read()`` to the end.

    ``close()`` must be called on every way out; before the end it closes the connection, so that the engine aborts.
    """

    __slots__ = ("_chunks", "_connection", "_size", "_timeout_s", "_timer", "_waiter",
                 "done", "error", "headers", "last_byte_at", "started", "status")  # fmt: skip

    def __init__(self, connection: "Connection", timeout_s: float) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.started = False  # the head of the answer is here
        self.done = False  # the whole answer is here
        self.error: UpstreamError | None = None
        loop = connection.loop
        self.last_byte_at = loop.time()
        self._connection = connection
        self._chunks: list[bytes] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._timeout_s = timeout_s
        self._timer: asyncio.TimerHandle | None = loop.call_at(self.last_byte_at + timeout_s, self._check_silence)

    async def head(self) -> None:
        """Waits for status and headers. Raises UpstreamError."""
        while not self.started:
            if self.error is not None:
                raise self.error
            await self._wait()

    async def read(self) -> bytes:
        """What has come since the last call, as soon as there is something; b"" at the end. Raises UpstreamError."""
        while not self._chunks:
            if self.done:
                return b""
            if self.error is not None:
                raise self.error
            await self._wait()
        chunks = self._chunks
        if len(chunks) == 1:
            whole = chunks[0]
            chunks.clear()
        else:
            whole = b"".join(chunks)
            self._chunks = []
        self._size = 0
        self._connection.resume()
        return whole

    def close(self) -> None:
        """Give the connection back to the pool if the answer is whole, else cut it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._connection.release(self)

    @property
    def buffered(self) -> int:
        """Bytes of the body that have come and were not read yet."""
        return self._size

    # -- called by the connection ----------------------------------------------------------------------------------

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def add(self, body: bytes) -> bool:
        """Take a piece of the body; whether the connection should pause."""
        self._chunks.append(body)
        self._size += len(body)
        return self._size > HIGH_WATER

    def fail(self, error: UpstreamError) -> None:
        if not self.done and self.error is None:
            self.error = error
        self.wake()

    async def _wait(self) -> None:
        self._waiter = self._connection.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _check_silence(self) -> None:
        # One timer an exchange, re-armed only when it fires: cheaper than one for every chunk.
        due = self.last_byte_at + self._timeout_s
        if self._size and due <= self._connection.loop.time():
            due = self._connection.loop.time() + self._timeout_s  # it is the client that does not read
        if due > self._connection.loop.time():
            self._timer = self._connection.loop.call_at(due, self._check_silence)
        else:
            self._timer = None
            self.fail(WorkerSilent(f"sent nothing for {self._timeout_s:g} s"))


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
        self._paused = False
        self._out_of_step = False
        self._keep_alive = False

    def send(self, head: bytes, body: bytes, timeout_s: float) -> Exchange:
        assert self._transport is not None
        exchange = Exchange(self, timeout_s)
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
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            self.abort()  # a worker that talks without having been asked
            return
        exchange.last_byte_at = self.loop.time()
        if not exchange.started:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._break(BadAnswer(f"answered something that is no HTTP/1.1: {error}"))
            return
        if not exchange.started and self._head_size > MAX_HEAD_BYTES:
            self._break(BadAnswer(f"sent headers of more than {MAX_HEAD_BYTES} bytes"))
            return
        exchange.wake()

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
        exchange.headers = self._headers
        exchange.started = True
        # Neither length nor chunks: the body ends with the connection (RFC 9112, 6.3).
        self._until_close = status not in (204, 304) and not any(
            name in (b"content-length", b"transfer-encoding") for name, _ in self._headers
        )

    def on_body(self, body: bytes) -> None:
        exchange = self._exchange
        if exchange is None or self._out_of_step:
            return
        if exchange.add(body) and not self._paused and self._transport:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._exchange is not None and self._exchange.started:
            self._exchange.done = True
            # To be asked here: the parser has forgotten it when the next call begins.
            self._keep_alive = self._parser.should_keep_alive()


class Upstream:
    """All connections to all workers."""

    def __init__(self, *, connect_timeout_s: float, answer_timeout_s: float) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._idle: dict[Address, list[Connection]] = {}

    async def open(self, address: Address, head: bytes, body: bytes) -> Exchange:
        """Send a request and wait for the head of its answer. Raises UpstreamError.

        ``head`` is the request line and headers with the blank line. A pooled connection that the worker closed just
        now is replaced by a fresh one: nobody has read the request then, so this is no second attempt.
        """
        while True:
            connection = self._take(address) or await self._connect(address)
            exchange = connection.send(head, body, self._answer_timeout_s)
            try:
                await exchange.head()
            except ConnectionBroken:
                exchange.close()
                if connection.used:
                    continue
                raise
            except BaseException:
                exchange.close()
                raise
            return exchange

    def forget(self, address: Address) -> None:
        """Close the idle connections to a worker that is gone."""
        for connection in self._idle.pop(address, []):
            connection.abort()

    def close(self) -> None:
        for address in list(self._idle):
            self.forget(address)

    def _take(self, address: Address) -> Connection | None:
        idle = self._idle.get(address)
        while idle:
            connection = idle.pop()
            if not connection.closed and connection.loop.time() - connection.idle_since < MAX_IDLE_S:
                return connection
            connection.abort()
        return None

    async def _connect(self, address: Address) -> Connection:
        loop = asyncio.get_running_loop()

        def keep(connection: Connection) -> None:
            idle = self._idle.setdefault(address, [])
            if len(idle) < MAX_IDLE_CONNECTIONS:
                idle.append(connection)
            else:
                connection.abort()

        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(lambda: Connection(loop, keep), *address)
        except TimeoutError:
            message = f"did not accept a connection within {self._connect_timeout_s:g} s"
            raise ConnectFailed(message, refused=False) from None
        except ConnectionRefusedError as error:
            raise ConnectFailed("refused the connection", refused=True) from error
        except OSError as error:
            raise ConnectFailed(f"cannot be connected to: {error}", refused=False) from error
        return connection
