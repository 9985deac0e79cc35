"""One request of the data plane and its answer, as bytes on a client's connection."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from relay.headers import Header
from relay.known_head import KnownHead

DISCARD_FACTOR: Final = 4
"""A body over the limit is read and thrown away up to this many times the limit, so that the client, which sends
before it reads, gets to see the error instead of a reset connection."""
BODILESS: Final = frozenset({204, 304})


class Call:
    """What came, and ``start`` and ``push`` for what goes back.

    The head of an answer is kept back until its first byte of body: one write for both, and until then the answer of
    another worker can take its place.
    """

    __slots__ = ("_body", "_head", "_left", "_limit", "_on_end", "_size", "disconnected", "expects_continue",
                 "first_byte_at", "headers", "hold", "is_chunked", "is_full", "is_old_http", "is_too_large",
                 "keep_alive", "known", "response_complete", "route", "started", "target", "transport")  # fmt: skip

    def __init__(
        self,
        transport: asyncio.Transport,
        on_end: Callable[[], None],
        hold: Callable[[bool], None],
        route: str,
        target: bytes,
        headers: list[Header],
        limit: int,
    ) -> None:
        self.transport = transport
        self._on_end = on_end
        self.hold = hold  # stop or go on reading from the client
        self._limit = limit
        self.route = route
        self.target = target  # path and query, as the client wrote them
        self.headers = headers  # names in lower case
        self.keep_alive = True  # its connection is for others after it; uvicorn's shutdown takes that back
        self.known: KnownHead | None = None  # its head, if that is one that came before
        self.is_old_http = False  # HTTP/1.0 knows no chunks
        self.expects_continue = False
        self.is_too_large = False
        self.started = False  # the client has got the head of an answer
        self.first_byte_at = 0.0  # time.perf_counter() of that
        self.response_complete = False
        self.disconnected = False
        self.is_full = False  # the client reads more slowly than it is written to: hold back what comes
        self._body: bytes | bytearray = b""
        self._size = 0
        self._head = b""
        self.is_chunked = False
        self._left: int | None = 0  # bytes of the answer's body that are still due; None: its length is not known

    # -- the request -----------------------------------------------------------------------------------------------

    @property
    def body(self) -> bytes:
        if isinstance(self._body, bytearray):
            self._body = bytes(self._body)
        return self._body

    def add(self, piece: bytes) -> bool:
        """Take a piece of the body. What is over the limit is not kept; False when enough of it was thrown away."""
        self._size += len(piece)
        if self._size <= self._limit and not self.response_complete:
            if not self._body:
                self._body = piece  # the usual case: it comes at once, and is not copied
            elif isinstance(self._body, bytearray):
                self._body += piece
            else:  # not a list of pieces, each of which takes more memory than the two bytes that it may hold
                self._body = bytearray(self._body)
                self._body += piece
            return True
        self.is_too_large = self._size > self._limit
        self._body = b""
        return self._size <= self._limit * DISCARD_FACTOR

    def take(self) -> bytes:
        """What of the body has come since the last time."""
        body, self._body = self.body, b""
        return body

    # -- its answer ------------------------------------------------------------------------------------------------

    def start(self, status: int, headers: Iterable[Header], more: bytes = b"") -> None:
        """The head of the answer, which goes out with the first piece of its body. Of several the last one counts.

        ``more``: further headers, as they are written; none of framing.
        """
        length = None
        content = [STATUS_LINE.get(status) or b"HTTP/1.1 %d \r\n" % status]
        for name, value in headers:
            if name == b"content-length":
                length = int(value)
                if status == 204:
                    continue  # RFC 9110, 8.6
            elif name == b"connection":
                self.keep_alive = self.keep_alive and value != b"close"
                continue
            content += (name, b": ", value, b"\r\n")
        content.append(more)
        self._left = 0 if status in BODILESS else length
        self.is_chunked = self._left is None and not self.is_old_http
        if self.is_chunked:
            content.append(b"transfer-encoding: chunked\r\n")
        elif self._left is None:
            self.keep_alive = False  # its end is the connection's
        if not self.keep_alive:
            content.append(b"connection: close\r\n")
        content.append(b"\r\n")
        self._head = b"".join(content)

    def start_whole(self, written: bytes, length: int) -> None:
        """As ``start``, of an answer of status 200 and this length, with all other headers as they are written."""
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        self._left, self.is_chunked = length, False
        self._head = b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n%b" % (written, length, end)

    def push(self, piece: bytes, last: bool) -> None:
        """A piece of the body: one write with the head if that is due, and with the end if it is the ``last``."""
        if self.disconnected or self.response_complete:
            return
        head = self._head
        if not self.started:
            self.started = True
            self.first_byte_at = time.perf_counter()
            self._head = b""
        if not self.is_chunked:
            piece = head + self._due(piece)
        elif last:
            piece = b"%b%x\r\n%b\r\n0\r\n\r\n" % (head, len(piece), piece) if piece else head + b"0\r\n\r\n"
        elif piece:
            piece = b"%b%x\r\n%b\r\n" % (head, len(piece), piece)
        else:
            piece = head
        if piece:
            self.transport.write(piece)
        if last:
            self._end(is_whole=not self._left)

    def _due(self, piece: bytes) -> bytes:
        """What of it was promised: a byte more would be taken for the beginning of the next answer."""
        if self._left is None:
            return piece
        due = piece[: self._left]
        self._left -= len(due)
        self.keep_alive = self.keep_alive and len(due) == len(piece)
        return due

    def answer(self, status: int, headers: Iterable[Header], body: bytes, more: bytes = b"") -> None:
        """A whole answer at once."""
        self.start(status, [*headers, (b"content-length", b"%d" % len(body))], more)
        self.push(body, last=True)

    def abort(self) -> None:
        """Cut the connection, so that nobody takes the answer for a whole one."""
        if not self.response_complete:
            self._end(is_whole=False)

    @property
    def is_open_ended(self) -> bool:
        """No length was promised: more can be said."""
        return self._left is None

    def give_up(self) -> None:
        """The client has not read for too long: to us it has gone."""
        self.transport.abort()

    def _end(self, *, is_whole: bool) -> None:
        self.response_complete = True
        self._body = b""
        self.keep_alive = self.keep_alive and is_whole
        self._on_end()
