"""Upload: a form with a file, which goes to the worker while it comes from the client, and so is asked only once."""

from collections.abc import Callable
from typing import Final

from relay.multipart import ModelFinder, boundary_of
from relay.request import NO_MODEL, Headers
from relay.upstream.exchange import Exchange
from utils.errors import BadRequest

MAX_WAITING: Final = 4 * 1024 * 1024
"""Bytes of a form that wait for a worker; of a longer one no more is read meanwhile."""
LAST_CHUNK: Final = b"0\r\n\r\n"


class Upload:
    """``model`` is "" until the form has told it; what comes until there is a worker for it waits here.

    ``length``: of the form in bytes; -1 where the client sends chunks, which the worker then gets too.
    ``hold``: tells the client's connection to stop or go on.
    """

    def __init__(self, headers: Headers, hold: Callable[[bool], None]) -> None:
        """Raises UnsupportedMediaType, BadRequest."""
        self._finder = ModelFinder(boundary_of(headers))
        self._hold = hold
        self._waiting = bytearray()
        self._exchange: Exchange | None = None
        self._is_whole = False
        self.length = int(headers.get(b"content-length", b"-1"))

    @property
    def model(self) -> str:
        return self._finder.model

    def feed(self, piece: bytes) -> None:
        """A piece of the form. Raises BadRequest."""
        if not self.model:
            self._finder.feed(piece)
        if self._exchange is not None:
            self._exchange.send_more(self._framed(piece))
            return
        self._waiting += piece
        if self.model and len(self._waiting) > MAX_WAITING:
            self._hold(True)

    def end(self) -> None:
        """The form is here, whole. Raises BadRequest."""
        self._is_whole = True
        if not self.model:
            raise BadRequest(f"{NO_MODEL} (in the form's field 'model')", param="model")
        self._hold(False)
        if self._exchange is not None:
            self._finish(self._exchange)

    def go_to(self, exchange: Exchange) -> None:
        """There is a worker for it."""
        self._exchange = exchange
        exchange.is_sent = False
        waiting, self._waiting = bytes(self._waiting), bytearray()
        exchange.send_more(self._framed(waiting))
        if self._is_whole:
            self._finish(exchange)

    def _finish(self, exchange: Exchange) -> None:
        exchange.is_sent = True
        if self.length < 0:
            exchange.send_more(LAST_CHUNK)

    def _framed(self, piece: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(piece), piece) if self.length < 0 and piece else piece
