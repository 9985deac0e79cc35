"""What an answer says that it took, read from its last bytes: no JSON is parsed for it."""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

TAIL_BYTES: Final = 4096
"""Usage stands at the end of an answer, or in the last events of a stream."""
PROMPT: Final = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d{1,9})\b')
COMPLETION: Final = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d{1,9})\b')
CACHED: Final = re.compile(rb'"(?:cached_tokens|cache_read_input_tokens)"\s*:\s*(\d{1,9})\b')


TOTAL: Final = b'"total_tokens":'


def total_of(pieces: Sequence[bytes]) -> int | None:
    """The tokens of a whole request, quickly where an answer says them as engines do; None: it does not say."""
    for piece in reversed(pieces):
        start = piece.rfind(TOTAL)
        if start >= 0:
            digits = piece[start + len(TOTAL) : start + len(TOTAL) + 12].lstrip().partition(b",")[0].rstrip(b"} \r\n")
            if digits.isdigit():
                return int(digits)
    return usage_of(pieces).total


class Usage(NamedTuple):
    """Tokens; ``cached``: those of the prompt that were; None: it does not say."""

    prompt: int | None
    completion: int | None
    cached: int | None

    @property
    def total(self) -> int | None:
        return None if self.prompt is None else self.prompt + (self.completion or 0)


NO_USAGE: Final = Usage(None, None, None)


def usage_of(pieces: Sequence[bytes]) -> Usage:
    """Of the last pieces of an answer. What a model writes is no usage: JSON escapes its quotes."""
    tail = b"".join(pieces)[-TAIL_BYTES:]
    if tail.find(b"_tokens") < 0:
        return NO_USAGE
    return Usage(*(int(found[-1]) if (found := each.findall(tail)) else None for each in (PROMPT, COMPLETION, CACHED)))
