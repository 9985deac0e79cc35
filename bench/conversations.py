"""What ``bench.routing`` asks: conversations of made-up words, the same length for every policy. Pure."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

WORDS: Final = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system",
    "program", "question", "work", "government", "number", "night", "point", "home", "water", "room", "mother", "area",
    "money", "story", "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "business", "issue",
    "side", "kind", "head", "house", "service", "friend", "father", "power", "hour", "game", "line", "end", "member",
    "law", "car", "city", "name", "team", "minute", "idea", "body", "back", "parent", "face", "others", "level",
)  # fmt: skip
"""Each is one token of most tokenizers: as many words are as many tokens, whichever they are."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """``system``: "" for none. ``turns``: what the user says, each after the answer to the one before."""

    name: str
    system: str
    turns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Lengths are in words. Small by default, for engines on CPUs, which read about a hundred words a second."""

    conversations: int = 6
    turns: int = 5
    turn_words: int = 60
    prompts: int = 4
    prompt_words: int = 300
    questions: int = 6
    question_words: int = 15
    singles: int = 16
    single_words: int = 150


def words(salt: str, count: int) -> str:
    """So many words; those of two salts have no beginning in common."""
    rng = random.Random(salt)  # noqa: S311 - made-up words, the same for the same salt
    return " ".join(rng.choices(WORDS, k=count))


def multi_turn(salt: str, sizes: Sizes) -> list[Conversation]:
    """Conversations that grow, each turn with all that went before."""
    return [
        Conversation(f"{salt}/{name}", "", tuple(words(f"{salt}/{name}/{turn}", sizes.turn_words) for turn in
                                                 range(sizes.turns)))
        for name in range(sizes.conversations)
    ]  # fmt: skip


def shared_prompts(salt: str, sizes: Sizes) -> list[Conversation]:
    """Short questions below a few long system prompts, in an order of their own."""
    asked = [
        Conversation(f"{salt}/{prompt}/{number}", words(f"{salt}/{prompt}", sizes.prompt_words),
                     (words(f"{salt}/{prompt}/{number}", sizes.question_words),))
        for prompt in range(sizes.prompts) for number in range(sizes.questions)
    ]  # fmt: skip
    random.Random(salt).shuffle(asked)  # noqa: S311 - any order will do
    return asked


def nothing_shared(salt: str, sizes: Sizes) -> list[Conversation]:
    """Questions that have nothing in common."""
    return [
        Conversation(f"{salt}/{number}", "", (words(f"{salt}/{number}", sizes.single_words),))
        for number in range(sizes.singles)
    ]


WORKLOADS: Final[Mapping[str, Callable[[str, Sizes], list[Conversation]]]] = {
    "multi-turn": multi_turn,
    "shared-prompts": shared_prompts,
    "nothing-shared": nothing_shared,
}
