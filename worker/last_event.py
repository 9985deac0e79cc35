"""A stream of server-sent events on its way, the last one changed: that before ``[DONE]``, or before the end."""

import re
from collections.abc import Callable
from typing import Final

EVENT_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
DATA: Final = re.compile(rb"((?:^|[\r\n])data: ?)([^\r\n]*)")
ENDING: Final = (b'"finish_reason":"', b'"finish_reason": "', b'"usage":{', b'"usage": {', b'"finish_reason":{',
                 b'"finish_reason": {', b"response.completed", b"message_stop")  # fmt: skip
"""An event that holds none of these is not the last of its stream, and need not wait for the next one."""
MAX_HELD: Final = 1024 * 1024
"""What does not end within so many bytes is no stream of events that we know: it passes as it is."""


class LastEvent:
    """Pure: bytes in as they come, bytes out; any split of them gives the same. ``change``: data in, data out."""

    def __init__(self, change: Callable[[bytes], bytes]) -> None:
        self._change = change
        self._last = b""  # a whole event that may be the last
        self._rest = b""  # one that has not ended yet
        self._passes_all = False

    def feed(self, piece: bytes, *, is_end: bool) -> bytes:
        """What can be passed on now. An event waits for the next one only if it may be the last."""
        if self._passes_all:
            return piece
        self._rest += piece
        ready = []
        start = 0
        for end in EVENT_END.finditer(self._rest):
            ready.append(self._take(self._rest[start : end.end()]))
            start = end.end()
        self._rest = self._rest[start:]
        if is_end:
            ready += [self._changed(self._last), self._rest]
        elif len(self._rest) > MAX_HELD:
            ready += [self._last, self._rest]
            self._passes_all = True
        return b"".join(ready)

    def _take(self, event: bytes) -> bytes:
        """A whole event: what can go before it, and itself where it need not wait."""
        if not DATA.search(event):
            return event  # a comment, sent to keep the connection open
        before, self._last = self._last, b""
        if is_done(event):
            return self._changed(before) + event
        if any(word in event for word in ENDING):
            self._last = event
            return before
        return before + event

    def _changed(self, event: bytes) -> bytes:
        """Of several ``data`` lines there is but one with all engines that we know."""
        return DATA.sub(lambda found: found[1] + self._change(found[2]), event)


def is_done(event: bytes) -> bool:
    return event.strip() in (b"data: [DONE]", b"data:[DONE]")
