"""Server-sent events, the reading side (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from dataclasses import dataclass
from typing import Final

MAX_EVENT_BYTES: Final = 4 * 1024 * 1024
"""A longer event is an error of the sender: the parser must not hold more than this."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event: ``data`` lines joined by line feeds, ``event`` empty for the default kind, ``id`` as last seen."""

    data: str
    event: str = ""
    id: str = ""


class SSEParser:
    """Bytes in as they arrive, whole events out. Any split of the bytes gives the same events."""

    def __init__(self) -> None:
        self._rest = b""
        self._after_cr = False
        self._size = 0
        self._data: list[str] = []
        self._event = ""
        self._id = ""
        self._first = True

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that end within ``chunk``. Raises ValueError for an event over ``MAX_EVENT_BYTES``."""
        if self._after_cr and chunk:
            # A CR at the end of the last chunk ended its line already: the LF that may follow belongs to it.
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        self._after_cr = chunk.endswith(b"\r") if chunk else self._after_cr
        self._rest += chunk
        if self._first and (len(self._rest) >= 3 or b"\n" in chunk or b"\r" in chunk):
            self._first = False
            self._rest = self._rest.removeprefix(b"\xef\xbb\xbf")
        *lines, self._rest = self._rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        events = []
        for line in lines:
            self._size += len(line)
            if self._size > MAX_EVENT_BYTES:
                break
            if line:
                self._read_field(line.decode("utf-8", "replace"))
            elif (event := self._end_event()) is not None:
                events.append(event)
        if self._size + len(self._rest) > MAX_EVENT_BYTES:
            raise ValueError(f"a server-sent event is longer than {MAX_EVENT_BYTES} bytes")
        return events

    def _read_field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value

    def _end_event(self) -> Event | None:
        data, event = self._data, self._event
        self._data, self._event, self._size = [], "", 0
        return Event("\n".join(data), event, self._id) if data else None
