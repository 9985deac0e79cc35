"""Tally: asks a replica how many tokens a text has."""

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from relay.headers import request_head
from relay.upstream.exchange import Address, Exchange, UpstreamError
from relay.upstream.pool import Upstream

TARGET: Final = b"/v1/tokenize"
HEADERS: Final = b"content-type: application/json\r\n"
LIMIT_S: Final = 5.0
"""An engine that is asked by many others at once, too, has counted by then; a client waits for it."""
MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
"""The answer lists the tokens, too."""


class Answer(msgspec.Struct):
    """As vLLM 0.32 and SGLang 0.5.23 answer (their ``protocol.py``)."""

    count: int


class Tally:
    """One count, which begins as it is made. ``told`` is called once, later; None: the replica cannot say.

    It reads the answer (``Reader``). ``cancel``: nobody wants to know any more.
    """

    def __init__(
        self, upstream: Upstream, address: Address, model: str, text: str, told: Callable[[int | None], None]
    ) -> None:
        self._upstream = upstream
        self._told = told
        self._body = b""
        asked = {"model": model, "prompt": text, "add_special_tokens": False}
        body = msgspec.json.encode(asked)
        head = request_head(TARGET, address, HEADERS, b"tally", len(body))
        self._timer = asyncio.get_running_loop().call_later(LIMIT_S, self._tell, None)
        self._exchange = upstream.open(address, head, body, self)

    def cancel(self) -> None:
        self._timer.cancel()
        self._upstream.close(self._exchange)

    def _tell(self, count: int | None) -> None:
        self.cancel()
        self._told(count)

    # -- Reader ----------------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        return False

    def take_head(self, exchange: Exchange) -> None:
        if exchange.status != 200:
            self._tell(None)

    def take(self, piece: bytes, last: bool) -> None:
        self._body += piece
        if last or len(self._body) > MAX_ANSWER_BYTES:
            self._tell(count_in(self._body))

    def take_error(self, _: UpstreamError) -> None:
        self._tell(None)

    def give_up(self) -> None:
        """Never called: it is never full."""

    def hold(self, is_held: bool) -> None:
        """The request's body is sent whole."""


def count_in(answer: bytes) -> int | None:
    try:
        return msgspec.json.decode(answer, type=Answer).count
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
