"""KnownHead: a client's requests on one connection have the same head, but for the length of their bodies."""

import re
from typing import Final

from config.settings import ClientKey
from relay.headers import Header

LENGTH: Final = re.compile(rb"\r\ncontent-length: ?([0-9]{1,12})\r\n", re.IGNORECASE)
LENGTH_NAME: Final = b"content-length"
NOT_PLAIN: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"connection", b"content-length"})
"""With one of these the parser has more to say of a request than its headers and its length."""
KEEP_ALIVE: Final = b"keep-alive"


class KnownHead:
    """What the parser made of a head, for those that repeat it byte for byte, the digits of their length aside.

    They need not be parsed again: the same bytes mean the same (doc/performance.md says what that saves).
    """

    __slots__ = ("_after", "_before", "by_name", "client", "forwarded", "headers", "route", "target")

    def __init__(self, before: bytes, after: bytes, route: str, target: bytes, headers: list[Header]) -> None:
        self._before = before  # up to the digits
        self._after = after  # from there to the end of the blank line
        self.route = route
        self.target = target
        self.headers = headers  # without the length
        self.by_name = dict(headers)
        self.client: ClientKey | None = None
        """Whose it is, once somebody has looked: it may be served."""
        self.forwarded = b""
        """The lines that a worker gets of them, once somebody has made them."""

    @classmethod
    def of(cls, request: bytes, route: str, target: bytes, headers: list[Header]) -> "KnownHead | None":
        """From the bytes of one whole request and what the parser found in them; None if it is not a plain one."""
        end = request.find(b"\r\n\r\n") + 4
        found = LENGTH.search(request, 0, end)
        if found is None or len(request) - end != int(found[1]):
            return None
        others = [header for header in headers if header[0] != LENGTH_NAME]
        if len(others) != len(headers) - 1 or not all(map(is_plain, others)):
            return None
        return cls(request[: found.start(1)], request[found.end(1) : end], route, target, others)

    def body_of(self, request: bytes) -> bytes | None:
        """The body of a whole request with this head; None for anything else."""
        before, after = self._before, self._after
        if not request.startswith(before):
            return None
        start = len(before)
        end = request.find(b"\r", start, start + 13)
        digits = request[start:end]
        if end < 0 or not digits.isdigit() or not request.startswith(after, end):
            return None
        body = request[end + len(after) :]
        return body if len(body) == int(digits) else None


def is_plain(header: Header) -> bool:
    name, value = header
    return name not in NOT_PLAIN or (name == b"connection" and value.lower() == KEEP_ALIVE)
