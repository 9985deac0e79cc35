"""Tape: what of a stream has gone to the client, and whether the stream has ended well."""

from collections.abc import Sequence
from typing import Final

from relay.streams.events import (
    CUT_SHORT,
    DONE,
    Blocks,
    Chunk,
    data_of,
    events_in,
    is_engines_fault,
    message_of,
    read_chunk,
    split_events,
)
from relay.streams.kept import Kept

DONE_EVENT: Final = b"data: [DONE]\n\n"
SUSPICIOUS: Final = (b'"error"', b'"abort"', b"[DONE]")
FINISH: Final = (b'"finish_reason":"', b'"finish_reason": "')
SECOND_CHOICE: Final = (b'"index":1', b'"index": 1')
"""How it says that there is one; or a tool call that has this index."""


class Tape(Kept):
    """Stands between a worker's bytes and the client, for one stream of a chat or a completion.

    Passes whole events only, byte for byte, and keeps them, so that the stream can go on elsewhere if it breaks. Holds
    back what would end it badly: a ``[DONE]`` before every choice has its finish reason, an engine's own failure, the
    finish reasons of an engine that stops (``CUT_SHORT``). From then on it ``is_broken``, and passes nothing more.

    ``feed`` is called for every chunk that does not go by ``Express``: a piece of whole events without a suspicious
    word in it is kept and passed, unread. In JSON the words that are looked for cannot be part of a text, whose
    quotes are escaped; a text that *is* such a word costs one look.
    """

    __slots__ = ("_blocks", "_may_go_on", "events", "has_failed", "is_broken", "is_done", "is_wary", "reason")

    def __init__(self, limit: int, passed: Sequence[bytes] = ()) -> None:
        """``limit``: bytes of memory to keep at most. ``passed``: what the client has got of the same stream before."""
        super().__init__(limit, passed)
        self._blocks = Blocks()
        self.is_wary = False
        """An event has come in part, or nothing may pass any more."""
        self._may_go_on = True
        self.events = 0
        """Those that went by ``Express``."""
        self.is_broken = False
        self.is_done = False
        """``[DONE]`` has been passed."""
        self.has_failed = False
        """The engine refused the request by an event of the stream, which was passed: no other would do better."""
        self.reason = ""
        """Why it ``is_broken``, to be put after "the worker"."""

    @property
    def is_resumable(self) -> bool:
        """All that was passed is still known, and another worker could go on."""
        return self._may_go_on and self.is_all

    @property
    def passed(self) -> Sequence[bytes]:
        """The pieces that the client has got: all of them while ``is_resumable``."""
        return self.pieces()

    def feed(self, piece: bytes) -> bytes:
        """What of the stream may go to the client now."""
        if self.take(piece):
            return piece
        if piece.endswith(DONE_EVENT) and not self.is_wary:  # as most streams end
            last = piece[: -len(DONE_EVENT)]
            if not last or self.take(last):
                return last + self._end()
        return self._feed_with_care(piece)

    def take(self, piece: bytes) -> bool:
        """Whether it may go to the client as it is, and is kept; if not, ``feed`` must be given it."""
        # ``find``, for ``in`` takes half as long again: it first tries whether what it looks for is a number.
        if (
            self.is_wary
            or not piece.endswith(b"}\n\n")  # so it is no ``[DONE]``, which comes last
            or piece.find(b'"error"') >= 0
            or piece.find(b'"abort"') >= 0
        ):
            return False
        self.add(piece)
        self.learn(piece)
        return True

    def finish(self) -> bytes:
        """The worker has ended its answer as HTTP has it. What is still to be passed; ``is_broken`` if it ended badly.

        A stream that ended well without ``[DONE]``, by finish reasons alone, is left as the engine left it.
        """
        events, rest = self._blocks.end()
        passed = b"" if self.is_broken else self._pass(events)
        if not (self.is_broken or self.is_done or self.has_failed or self._has_finished()):
            self.break_off("ended its stream without a finish_reason")
        if self.is_broken or not rest:
            return passed
        self.add(rest)
        return passed + rest

    def break_off(self, reason: str, *, for_good: bool = False) -> None:
        """Nothing more is passed. ``for_good``: no other worker can go on."""
        self.is_broken = self.is_wary = True
        self._may_go_on = self._may_go_on and not for_good
        self.reason = self.reason or reason

    def _end(self) -> bytes:
        self._note_done()
        if self.is_broken:
            return b""
        self.add(DONE_EVENT)
        return DONE_EVENT

    def _feed_with_care(self, piece: bytes) -> bytes:
        if self.is_broken:
            return b""
        passed = self._pass(self._blocks.feed(piece))
        self.is_wary = self.is_broken or self._blocks.is_waiting
        return passed

    def _pass(self, events: bytes) -> bytes:
        passed = []
        for block in split_events(events):
            if not self._may_pass(block):
                break
            self.add(block)
            passed.append(block)
        return b"".join(passed)

    def _may_pass(self, block: bytes) -> bool:
        if not any(block.find(word) >= 0 for word in SUSPICIOUS):
            return True
        try:
            data = data_of(block)
        except ValueError:
            return True  # too long for any event: what it is, the client may find out
        if data == DONE:
            self._note_done()
        elif data is not None and (chunk := read_chunk(data)) is not None:
            self._judge(chunk)
        return not self.is_broken

    def _note_done(self) -> None:
        self.is_done = self.is_done or self.has_failed or self._has_finished()
        if not self.is_done:
            self.break_off("ended its stream by [DONE] without a finish_reason")

    def _judge(self, chunk: Chunk) -> None:
        if chunk.error is not None:
            self.has_failed = not is_engines_fault(chunk.error)
            if not self.has_failed:
                self.break_off(f"reported that its engine failed: {message_of(chunk.error)}")
            return
        cut = [choice.finish_reason for choice in chunk.choices or () if choice.finish_reason in CUT_SHORT]
        if cut:
            self.break_off(f"ended its stream by finish_reason {cut[0]}")

    def _has_finished(self) -> bool:
        return has_finished(self.skeleton(), is_all=self.is_resumable)


def has_finished(stream: bytes, *, is_all: bool = True) -> bool:
    """Whether every choice that begins in these whole events has its finish reason, and there is one.

    Of a stream's tail (not ``is_all``) one choice is enough. Where only one choice begins, nothing is parsed.
    """
    if is_all and any(stream.find(word) >= 0 for word in SECOND_CHOICE):
        return all_finished(stream)
    return any(stream.rfind(word) >= 0 for word in FINISH)


def all_finished(stream: bytes) -> bool:
    chunks = [chunk for data in events_in([stream]) if (chunk := read_chunk(data)) is not None]
    choices = [choice for chunk in chunks for choice in chunk.choices or ()]
    begun = {choice.index for choice in choices}
    return begun == {choice.index for choice in choices if choice.finish_reason}
