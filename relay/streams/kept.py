"""Kept: the pieces of a stream that have passed, in little memory."""

import re
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

KEPT_AFTER_ALL: Final = 8
"""Pieces that are still remembered, of the last, when a stream is too long to be kept: enough to judge its end."""
OBJECT_BYTES: Final = 56
"""What Python takes for a short ``bytes`` in a list, besides its length: sys.getsizeof(b"") and a slot, rounded up."""
RUN_BYTES: Final = 224
"""What it takes for a run of pieces: a tuple of three and a list."""
MAX_LESSONS: Final = 8
"""Pieces that a stream's pattern is looked for in, so that one without any costs little."""
BEGINS_TEXT: Final = re.compile(rb'"(?:content|text|reasoning_content|reasoning)": ?"')
USUAL: Final = b'"content":"'
"""The one that comes most, which is found sooner by itself."""
NEVER: Final = b"\0"
"""No end of a piece."""


class Kept:
    """Pieces of whole events, in order.

    An engine's chunks of text differ in the text alone. Of those that are alike only this is kept, and what stands
    before and after it once: a fifth of the memory, which is also what keeping them costs in time.
    """

    __slots__ = ("_lessons", "_runs", "_whole", "ending", "is_all", "prefix", "room", "suffix", "texts")

    def __init__(self, limit: int, pieces: Sequence[bytes] = ()) -> None:
        """``limit``: bytes of memory to take at most."""
        self._whole: list[bytes] | deque[bytes] | None = None  # the last run's, if it is one of whole pieces
        self._runs: list[tuple[bytes, bytes, list[bytes] | deque[bytes]]] = []
        self.room = limit
        """Bytes of memory that are left."""
        self._lessons = MAX_LESSONS
        self.is_all = True
        """Nothing was forgotten."""
        self.prefix = self.suffix = self.ending = NEVER
        """What pieces that are alike begin with, up to a text's quote, and end with, from its other quote on; and with
        the end of a chunk behind it."""
        self.texts: list[bytes] | deque[bytes] | None = None
        """Of the run of such pieces that goes on; None: the last piece was another."""
        for piece in pieces:
            self.add(piece)

    def add(self, piece: bytes) -> None:
        """A piece of any kind, by reference."""
        whole = self._whole
        if whole is None:
            whole = self._whole = []
            self._runs.append((b"", b"", whole))
            self.room -= RUN_BYTES
        if self.is_all:
            self.texts = None
        whole.append(piece)
        self._take_room(piece)

    def add_text(self, text: bytes) -> None:
        """A piece that is alike, by its text."""
        texts = self.texts
        if texts is None:
            texts = self.texts = []
            self._runs.append((self.prefix, self.suffix, texts))
            self._whole = None
            self.room -= RUN_BYTES
        texts.append(text)
        self._take_room(text)

    def _take_room(self, stored: bytes) -> None:
        self.room -= len(stored) + OBJECT_BYTES
        if self.room < 0:
            self.forget()

    def learn(self, piece: bytes) -> None:
        """Which pieces are alike from now on: those like this harmless one but for its text."""
        if not self._lessons:
            return
        self._lessons -= 1
        begin = piece.find(USUAL) + len(USUAL)
        if begin < len(USUAL):
            found = BEGINS_TEXT.search(piece)
            if found is None:
                return
            begin = found.end()
        end = piece.find(b'"', begin)
        if end < 0 or piece[end - 1 : end] == b"\\":  # it has no end, or that is a quote within it
            return
        self.prefix, self.suffix = piece[:begin], piece[end:]
        self.ending = self.suffix + b"\r\n"
        if self.is_all:
            self.texts = None

    def pieces(self) -> list[bytes]:
        return [prefix + text + suffix for prefix, suffix, texts in self._runs for text in texts]

    def skeleton(self) -> bytes:
        """The stream with one piece, without its text, for all that are alike and come together."""
        return b"".join(
            piece for prefix, suffix, texts in self._runs for piece in ([prefix + suffix] if prefix else texts)
        )

    def tail(self) -> list[bytes]:
        """The last two pieces, or fewer."""
        return self._last(2)

    def _last(self, count: int) -> list[bytes]:
        """Not of ``pieces()``, which for a moment would take many times the memory."""
        return list(islice(self._backwards(), count))[::-1]

    def _backwards(self) -> Iterator[bytes]:
        for prefix, suffix, texts in reversed(self._runs):
            for text in reversed(texts):
                yield prefix + text + suffix

    def forget(self) -> None:
        """All but the last few: there is no room for more."""
        self.is_all = False
        self.room = 1 << 62
        self._whole = deque(self._last(KEPT_AFTER_ALL), KEPT_AFTER_ALL)
        self._runs = [(b"", b"", self._whole)]
        self.texts = deque(maxlen=0)  # pieces that are alike say nothing of a stream's end
