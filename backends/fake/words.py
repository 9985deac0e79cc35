"""What the fake engine says: words that follow from a prompt, and go on where an answer has been begun.

An answer's word number ``index`` depends on the prompt and on ``index`` alone, and every word is one token and ends in
a space. So an engine that gets a prompt and a part of its answer says what the first engine would have said next.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

WORDS: Final = (
    "light", "river", "stone", "cloud", "green", "seven", "quiet", "maple", "north", "glass", "amber", "field",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prompt:
    """``text``: what is to be answered. ``said``: how many words of the answer are there already."""

    text: str
    said: int = 0

    @property
    def tokens(self) -> int:
        return len(self.text.split()) + self.said


def seed_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def word_of(seed: int, index: int) -> str:
    return WORDS[(seed + index * 7) % len(WORDS)] + " "


def chat_prompt(body: dict[str, Any]) -> Prompt:
    """With ``continue_final_message``, the last message is the answer's beginning."""
    messages = body["messages"]
    if not (body.get("continue_final_message") and messages):
        return Prompt(json.dumps(messages))
    begun = messages[-1].get("content") if isinstance(messages[-1], dict) else None
    return Prompt(json.dumps(messages[:-1]), len(str(begun or "").split()))


def completion_prompt(text: str) -> Prompt:
    """A prompt that ends in the answer to its own beginning is that beginning, and so many words."""
    words = last_words(text)
    for skipped in range(len(words)):
        base = text[: len(text) - sum(map(len, words[skipped:]))]
        seed = seed_of(base)
        if all(word_of(seed, index) == word for index, word in enumerate(words[skipped:])):
            return Prompt(base, len(words) - skipped)
    return Prompt(text)


def last_words(text: str) -> list[str]:
    """Those at a text's end that could be ours."""
    words: list[str] = []
    end = len(text)
    while word := next((word for word in WORDS if text.endswith(f"{word} ", 0, end)), ""):
        words.append(f"{word} ")
        end -= len(words[-1])
    return words[::-1]
