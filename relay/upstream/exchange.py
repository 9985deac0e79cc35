"""One request to a worker and its answer, told by calls: no task waits for it, and none wakes up for a piece of it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from relay.headers import Header

if TYPE_CHECKING:
    from relay.upstream.connection import Connection

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


class StreamBroken(UpstreamError):
    """The answer came whole by HTTP's rules, but says itself that the engine failed, or lacks its end."""


class Reader(Protocol):
    """Who asked. First comes the head, then the body, of which one piece is the last; or an error, which ends it."""

    @property
    def is_full(self) -> bool:
        """Nothing more is to be passed until ``Exchange.deliver`` is called."""

    def take_head(self, exchange: "Exchange") -> None:
        """``exchange.status`` and ``exchange.headers`` are here."""

    def take(self, piece: bytes, last: bool) -> None: ...

    def take_error(self, error: UpstreamError) -> None: ...

    def give_up(self) -> None:
        """It has been full for as long as a worker may be silent."""

    def hold(self, is_held: bool) -> None:
        """Stop or go on sending more of the request's body."""


Shortcut = Callable[[bytes], bool]
"""A read, between two chunks of the chunked coding -> whether it was one whole chunk and was passed on as it is, to a
reader that had room; if not, nothing was done. Set by the reader when it has the head.
"""


class Exchange:
    """What is sent, what has come, and whom it goes to. Made by ``Upstream.open``; ended by ``Upstream.close``."""

    __slots__ = ("_chunks", "_is_told", "_on_broken", "_silent_s", "_size", "address", "body", "connection",
                 "done", "error", "head", "headers", "heard", "is_closed", "is_sent", "reader", "shortcut", "started",
                 "status", "written")  # fmt: skip

    def __init__(
        self,
        address: Address,
        head: bytes,
        body: bytes,
        reader: Reader,
        on_broken: Callable[["Exchange", UpstreamError], bool],
    ) -> None:
        self.address = address
        self.head = head
        self.body = body
        self.reader = reader
        self.connection: Connection | None = None
        self.status = 0
        self.headers: list[Header] = []
        self.written: bytes | None = None  # ``headers`` of a whole answer for a client, but for the length, if known
        self.started = False  # the head of the answer is here
        self.done = False  # the whole answer is here
        self.error: UpstreamError | None = None
        self.heard = True  # something of the answer has come since silence was last measured
        self.is_closed = False
        self.shortcut: Shortcut | None = None
        self.is_sent = True  # nothing more of the request's body will come by ``send_more``
        self._on_broken = on_broken
        self._silent_s = 0.0
        self._is_told = False  # the reader has the head
        self._chunks: list[bytes] = []
        self._size = 0

    @property
    def buffered(self) -> int:
        """Bytes of the body that have come and were not passed on yet."""
        return self._size

    def send_more(self, piece: bytes) -> None:
        """Of a request's body that comes in pieces."""
        if self.connection is None:
            self.body += piece
        else:
            self.connection.write(piece)

    def add(self, body: bytes) -> int:
        """Keep a piece of the body until ``arrive``; how many bytes are kept now."""
        self.heard = True
        self._chunks.append(body)
        self._size += len(body)
        return self._size

    def take_whole(self, headers: list[Header], written: bytes, body: bytes) -> None:
        """A whole answer of status 200, before anything of it has come."""
        self.status = 200
        self.headers, self.written = headers, written
        self.started = self.done = self.heard = True
        if body:
            self._chunks = [body]
            self._size = len(body)
        self._is_told = True
        self.reader.take_head(self)
        self.deliver()

    def arrive(self) -> None:
        """Something has come: a part of the head, the rest of it, a part of the body, its end."""
        if not self._is_told:
            if not self.started:
                return
            self._is_told = self.heard = True
            self.reader.take_head(self)
        self.deliver()

    def deliver(self) -> None:
        """Pass on what is here, as far as the reader has room."""
        reader = self.reader
        while not self.is_closed and self._is_told and not reader.is_full:
            chunks = self._chunks
            if not chunks:
                if self.done:
                    reader.take(b"", True)
                elif self.error is not None:
                    self._end(self.error)
                return
            piece = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            self._chunks = []
            self._size = 0
            connection = self.connection
            if connection is not None and connection.is_paused:
                connection.resume()
            reader.take(piece, self.done)
            if self.done or not (self._chunks or self.error):
                return

    def fail(self, error: UpstreamError) -> None:
        """What has come before is passed on first."""
        if self.done or self.error is not None or self.is_closed or self._on_broken(self, error):
            return
        self.error = error
        if self._is_told:
            self.deliver()
        else:
            self._end(error)

    def measure_silence(self, passed_s: float, limit_s: float) -> None:
        """``passed_s`` have gone by since the last call. A worker that is not read from cannot be heard.

        A whole head is heard, and then each piece of the body: what only comes with them (interim answers, half a head,
        the extensions of chunks) would let a worker go on for ever without an answer.
        """
        if self.heard or not self.is_sent:  # who is still being told what to do has nothing to say
            self.heard = False
            self._silent_s = 0.0
            return
        self._silent_s += passed_s
        if self._silent_s < limit_s:
            return
        if self._is_told and self.reader.is_full:
            self.reader.give_up()
        else:
            self.fail(WorkerSilent(f"sent nothing of its answer for {limit_s:g} s"))

    def _end(self, error: UpstreamError) -> None:
        self.is_closed = True
        self.reader.take_error(error)
