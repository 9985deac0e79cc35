"""Said: what a broken stream has told its client, read once it broke."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from relay.streams.events import DONE, Choice, Chunk, Usage, events_in, read_chunk

HEAD: Final = ("id", "object", "created", "model", "system_fingerprint")


@dataclass(slots=True)
class Said:
    """Of all choices together where nothing else is said; ``text`` and ``tokens`` mean something for one choice only.

    ``tokens`` are those of ``text``: by the stream's own continuous usage where it has that, else by its events. vLLM
    sends one event a token, but several tokens in one where its HTTP server is slower than its engine, for speculative
    decoding or by ``stream_interval``; SGLang sends none for a token without text. So without usage it may be less than
    the truth, and is counted before the stream goes on (relay/tally.py). It
    may be more by the few tokens that came again: where vLLM's text lags behind its tokens because of stop strings, and
    where a stream that broke twice did so in the middle of a character.
    """

    head: dict[str, msgspec.Raw] = field(default_factory=dict)
    """``id``, ``object``, ``created``, ``model`` and ``system_fingerprint`` as they were first written."""
    text: str = ""
    tokens: int = 0
    prompt_tokens: int | None = None
    begun: set[int] = field(default_factory=set)
    finished: set[int] = field(default_factory=set)
    has_reasoning: bool = False
    other: str = ""
    """The name of something that was said beside text and reasoning."""
    usage: Usage | None = None
    """The last one: of the whole answer, if that is finished."""
    has_continuous_usage: bool = False
    has_final_usage: bool = False
    error: bool = False
    done: bool = False
    _events: int = 0
    _parts: list[str] = field(default_factory=list)

    @property
    def is_nothing(self) -> bool:
        """No word of the answer, but maybe its role."""
        return not (self.text or self.finished or self.has_reasoning or self.other or self.error or self.done)

    @property
    def is_finished(self) -> bool:
        return bool(self.finished) and self.finished == self.begun

    def add(self, chunk: Chunk) -> None:
        self.error = self.error or chunk.error is not None
        if not self.head or chunk.system_fingerprint:  # which some engines tell only at the end
            self._take_head(chunk)
        for choice in chunk.choices or ():
            self._hear(choice, chunk.usage)
        if chunk.usage is not None:
            self._take_usage(chunk.usage, is_final=not chunk.choices)

    def _take_head(self, chunk: Chunk) -> None:
        for name in HEAD:
            value = getattr(chunk, name)
            if bytes(value) not in (b"", b"null"):
                self.head.setdefault(name, value)

    def _hear(self, choice: Choice, usage: Usage | None) -> None:
        index = choice.index or 0
        self.begun.add(index)
        if choice.finish_reason:
            self.finished.add(index)
        self.has_reasoning = self.has_reasoning or choice.reasoning
        self.other = self.other or next(iter(choice.other), "")
        if choice.role is None or choice.said:
            self._events += 1
        if choice.said:
            self._parts.append(choice.said)
            # Not yet the tokens after it that have no text, such as half a character: they will come again.
            counted = usage.completion_tokens if usage is not None else None
            self.tokens = self._events if counted is None else counted

    def _take_usage(self, usage: Usage, *, is_final: bool) -> None:
        self.usage = usage
        self.prompt_tokens = usage.prompt_tokens if self.prompt_tokens is None else self.prompt_tokens
        self.has_final_usage = self.has_final_usage or is_final
        self.has_continuous_usage = self.has_continuous_usage or not is_final


def read_passed(passed: Sequence[bytes]) -> Said:
    """What these whole events of one stream have said. Raises ValueError where one cannot be understood."""
    said = Said()
    for event in events_in(passed):
        if event == DONE:
            said.done = True
        elif (chunk := read_chunk(event)) is not None:
            said.add(chunk)
        else:
            raise ValueError(f"the stream holds what is no chunk: {event[:80]!r}")
    said.text = "".join(said._parts)
    return said
