"""KnownAnswer: a worker's whole answers on one connection have the same head, but for their date and length."""

import re
from typing import Final

from relay.headers import NOT_TO_CLIENTS, Header, is_event_stream, lines

VARIABLE: Final = {b"date": rb"([!-~][ -~]{27}[!-~])", b"content-length": rb"([0-9]{1,9})"}
"""Header -> what it may be from answer to answer. The date's length is fixed by RFC 9110, 5.6.7; of its bytes the
parser would refuse some, and leave out spaces around it."""
NOT_PLAIN: Final = frozenset({b"transfer-encoding", b"connection", b"keep-alive", b"upgrade", b"trailer"})
"""With one of these the parser has more to say of an answer than its headers and its length."""


class KnownAnswer:
    """What the parser made of a head, for those that repeat it byte for byte, the values of ``VARIABLE`` aside.

    They need not be parsed again, nor looked through for what the client is to get.
    """

    __slots__ = ("_date_at", "_fixed", "_length_at", "_match", "_written")

    def __init__(self, pattern: bytes, date_at: int, length_at: int, fixed: list[Header]) -> None:
        """``date_at``, ``length_at``: number of the group in ``pattern``; 0: there is none."""
        self._match = re.compile(pattern).match
        self._date_at, self._length_at = date_at, length_at
        self._fixed = fixed
        self._written = lines(header for header in fixed if header[0] not in NOT_TO_CLIENTS)

    @classmethod
    def of(cls, read: bytes, headers: list[Header]) -> "KnownAnswer | None":
        """From a read that was a whole answer of status 200, and what the parser found in it; None if it is no plain
        one, or a stream.
        """
        end = read.find(b"\r\n\r\n") + 2
        names = [name for name, _ in headers]
        if (
            is_event_stream(headers)
            or NOT_PLAIN.intersection(names)
            or names.count(b"content-length") != 1
            or names.count(b"date") > 1
        ):
            return None
        first, *rest = read[:end].split(b"\r\n")[:-1]
        if len(rest) != len(headers):  # one is folded, or has none of the shapes that are usual
            return None
        pattern = [re.escape(first)]
        for line, (name, value) in zip(rest, headers, strict=True):
            variable = VARIABLE.get(name)
            if variable is None:
                pattern.append(re.escape(line))
            elif line.endswith(b": " + value) and re.fullmatch(variable, value):
                pattern.append(re.escape(line[: -len(value)]) + variable)
            else:
                return None
        variables = [name for name in names if name in VARIABLE]
        fixed = [header for header in headers if header[0] not in VARIABLE]
        date_at = variables.index(b"date") + 1 if b"date" in variables else 0
        return cls(b"\r\n".join(pattern) + b"\r\n\r\n", date_at, variables.index(b"content-length") + 1, fixed)

    def read(self, data: bytes) -> tuple[list[Header], bytes, bytes] | None:
        """Its headers, those of them that are the client's business as they are written, without the length, and its
        body, if ``data`` is a whole answer with this head.
        """
        found = self._match(data)
        if found is None:
            return None
        body = data[found.end() :]
        if len(body) != int(found[self._length_at]):
            return None
        if not self._date_at:
            return self._fixed, self._written, body
        date = found[self._date_at]
        return [*self._fixed, (b"date", date)], b"%bdate: %b\r\n" % (self._written, date), body
