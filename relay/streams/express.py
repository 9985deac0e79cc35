"""Express: the way of nearly every chunk of nearly every stream, from the worker's read to the client's write."""

from collections.abc import Callable
from typing import Final

from relay.call import Call
from relay.streams.kept import OBJECT_BYTES
from relay.streams.tape import Tape
from relay.upstream.sole_chunk import HEADS, MAX_READ_BYTES

QUOTE: Final = ord(b'"')
LINE_END: Final = ord(b"\n")


class Express(Tape):
    """A tape that takes what is behind the first piece of a stream as it comes from the connection, and writes it to a
    client whose answer is in chunks, too.

    ``ride`` does what ``Flight.take`` would do, or nothing. It is one function of one object, because for each chunk a
    call, and an object that is not in the processor's cache, cost what a microsecond's work does (doc/performance.md).
    """

    __slots__ = ("_call", "_crash")

    def __init__(self, limit: int, call: Call, crash: Callable[[Exception], None]) -> None:
        """``crash`` hears of what failed here that should not have."""
        super().__init__(limit)
        self._call = call
        self._crash = crash

    def ride(self, read: bytes) -> bool:
        """Whether ``read`` was one whole chunk, and has been passed on as it is. If not, nothing was done."""
        size, call = len(read), self._call
        if size >= MAX_READ_BYTES or call.is_full or call.response_complete or self.is_wary:
            return False
        head = HEADS[size]
        start = len(head)
        if read[:start] != head:
            return False
        try:
            end, left = start + len(self.prefix), size - len(self.ending)
            if end <= left and read[left:] == self.ending and read[start:end] == self.prefix:
                text = read[end:left]
                # Where others stood, in events found harmless, it is within a string, and harmless too.
                if not (QUOTE in text or LINE_END in text):
                    if (texts := self.texts) is not None:
                        texts.append(text)
                        self.room -= len(text) + OBJECT_BYTES
                        if self.room < 0:
                            self.forget()
                    else:
                        self.add_text(text)
                    self.events += 1
                    call.transport.write(read)
                    return True
            return self._ride_unlike(read, start)
        except Exception as error:
            self._crash(error)
            return True

    def _ride_unlike(self, read: bytes, start: int) -> bool:
        piece = read[start:-2]
        if read[-2:] != b"\r\n" or not self.take(piece):
            return False
        self.events += max(1, piece.count(b"data:"))
        self._call.transport.write(read)
        return True
