"""What a client says about waiting, and what it is told while it waits. Pure."""

import math
import re
from collections.abc import Mapping
from typing import Final

from config.admission import NORMAL, priority_number
from utils.errors import BadRequest

PRIORITY_HEADER: Final = b"x-ichat-priority"
TIMEOUT_HEADER: Final = b"x-ichat-timeout-s"
MAX_TIMEOUT_S: Final = 86_400
SECONDS: Final = re.compile(rb"[0-9]{1,6}(\.[0-9]{1,6})?")

Headers = Mapping[bytes, bytes]


def priority_of(headers: Headers, cap: int) -> int:
    """The class that a request asks for, normal if it asks for none; what is above the key's cap is lowered to it.

    Lowered and not refused: a client sends the same headers with every key, and its operator sets the cap.
    Raises BadRequest.
    """
    asked = headers.get(PRIORITY_HEADER)
    if asked is None:
        return max(NORMAL, cap)
    try:
        return max(priority_number(asked.decode("latin-1")), cap)
    except ValueError as error:
        raise BadRequest(f"the header x-ichat-priority is wrong: {error}", code="invalid_priority") from None


def timeout_of(headers: Headers, default_s: float) -> float:
    """How many seconds a request may wait for its turn. Raises BadRequest."""
    asked = headers.get(TIMEOUT_HEADER)
    if asked is None:
        return default_s
    seconds = float(asked) if SECONDS.fullmatch(asked) else 0.0
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise BadRequest(
            f"the header x-ichat-timeout-s is wrong: send the seconds that the request may wait, above 0 and at most "
            f"{MAX_TIMEOUT_S}, such as 30 or 2.5",
            code="invalid_timeout",
        )
    return seconds


def queue_notice(position: int, eta_s: float | None) -> bytes:
    """An SSE comment for a stream that waits; ``position`` 0 is next, and is told as 1, as people count.

    Lines that begin with a colon are comments, which every client must ignore
    (https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation).
    """
    eta = b"" if eta_s is None else b" eta_s=%d" % math.ceil(eta_s)
    return b": queued position=%d%b\n\n" % (position + 1, eta)
