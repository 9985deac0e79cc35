"""Splice: the stream of the replica that goes on, made to look like the rest of the one that broke."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from relay.streams.events import BOM, DONE, REASONING, Blocks, data_of, split_events
from relay.streams.resume import Continuation, RawObject, encode
from relay.streams.tape import Tape

HEAD: Final = ("id", "created", "model", "system_fingerprint")
EMPTY: Final = (b"", b"null", b'""', b"[]", b"{}")


class Splice(Tape):
    """A tape whose events are read and rewritten, one by one, before they are judged and kept as any other's.

    ``id``, ``created``, ``model`` and ``system_fingerprint`` are those that the client knows already; the role is not
    told again; usage counts the whole answer. ``passed`` holds the first stream's pieces too: if this one breaks as
    well, ``continuation`` finds in it all that there is.
    """

    __slots__ = ("_incoming", "_said", "asked")

    def __init__(self, asked: Continuation, passed: Sequence[bytes], limit: int) -> None:
        super().__init__(limit, passed)
        self.asked = asked
        self._said = asked.said
        self._incoming = Blocks()

    def feed(self, piece: bytes) -> bytes:
        return self._take(self._incoming.feed(piece))

    def finish(self) -> bytes:
        events, rest = self._incoming.end()
        passed = self._take(events)
        if rest and (self.is_done or self._has_finished()):
            passed += self._take(rest + b"\n\n")
        return passed + super().finish()

    def _take(self, events: bytes) -> bytes:
        return b"".join([Tape.feed(self, self._rewritten(block)) for block in split_events(events)])

    def _rewritten(self, block: bytes) -> bytes:
        """One event as the client shall see it; b"" for one that it has had already. What is no chunk stays."""
        try:
            data = data_of(block)
            if data is None or data == DONE:
                return block.removeprefix(BOM)
            chunk = msgspec.json.decode(data, type=RawObject)
            if is_there(chunk, "error"):
                return block
            return b"" if self._is_left_out(chunk) else b"data: %b\n\n" % msgspec.json.encode(chunk)
        except (ValueError, msgspec.MsgspecError, RecursionError):
            return block

    def _is_left_out(self, chunk: RawObject) -> bool:
        """Whether the client need not see it. Rewrites the chunk in place. Raises as msgspec does, and ValueError."""
        for name in HEAD:
            if name in self._said.head and name in chunk:
                chunk[name] = self._said.head[name]
        choices = msgspec.json.decode(chunk.get("choices", b"[]"), type=list[RawObject] | None) or []
        kept = [choice for choice in choices if not self._is_known(choice)]
        if choices:
            chunk["choices"] = encode(kept)
        had_usage = is_there(chunk, "usage")
        self._sum_usage(chunk, is_final=not choices)
        return not kept if choices else had_usage and not is_there(chunk, "usage")

    def _is_known(self, choice: RawObject) -> bool:
        """Whether it tells only the role, which the client has had. The role is taken out of any other."""
        if "delta" not in choice:
            return False
        delta = msgspec.json.decode(choice["delta"], type=RawObject)
        if self._said.text and any(is_there(delta, name) for name in REASONING):
            self.break_off("began to reason again where an answer was to go on", for_good=True)
        index = msgspec.json.decode(choice.get("index", b"0"), type=int)
        if index not in self._said.begun or "role" not in delta:
            return False
        del delta["role"]
        choice["delta"] = encode(delta)
        return not any(is_there(delta, name) for name in delta) and not is_there(choice, "finish_reason")

    def _sum_usage(self, chunk: RawObject, *, is_final: bool) -> None:
        """Usage of the whole answer, or none if the client is to see none."""
        if not is_there(chunk, "usage"):
            return
        if self.asked.wants_usage if is_final else self.asked.wants_continuous_usage:
            later = msgspec.json.decode(chunk["usage"], type=dict[str, Any])
            chunk["usage"] = encode(summed(later, self._said.tokens, self._said.prompt_tokens))
        else:
            del chunk["usage"]


def is_there(chunk: RawObject, name: str) -> bool:
    return bytes(chunk.get(name, b"null")) not in EMPTY


def summed(later: dict[str, Any], tokens: int, prompt_tokens: int | None) -> dict[str, Any]:
    """The usage of a stream that went on after ``tokens``, as an unbroken one would have told it.

    The replica that goes on counts what was said before as a part of its prompt. Raises ValueError for no usage.
    """
    if not isinstance(later.get("prompt_tokens"), int):
        raise ValueError("usage without prompt_tokens")
    prompt = later["prompt_tokens"] - tokens if prompt_tokens is None else prompt_tokens
    completion = (later.get("completion_tokens") or 0) + tokens
    total = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    details = later.get("prompt_tokens_details")
    if isinstance(details, dict) and isinstance(cached := details.get("cached_tokens"), int):
        total["prompt_tokens_details"] = {**details, "cached_tokens": min(cached, prompt)}
    return {**later, **total}
