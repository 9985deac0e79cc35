"""Which models are asked instead of one that cannot answer: pure, from LiteLLM's ``fallbacks``.

All fallbacks between names are decided here and LiteLLM's own Router is given none, so that they lead from a worker's
model to a provider's and back, and nothing is tried twice. Which names are workers' is not this file's matter.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec

from config.providers import FallbackTable, ProviderSettings
from utils.errors import ApiError

MAX_FALLBACKS: Final = 5
"""How many other models one request is tried at, at most: LiteLLM's default of ``router_settings.max_fallbacks``."""
ANY: Final = "*"
"""In LiteLLM's tables the model that stands for all which have no line of their own."""

Table = Mapping[str, tuple[str, ...]]
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Why(StrEnum):
    """Why a model does not answer."""

    UNAVAILABLE = "unavailable"  # no replica ready, the worker or provider broke, is silent, or refuses to serve
    QUEUE_FULL = "queue_full"  # its queue, or the provider's limit of requests
    CONTEXT_WINDOW = "context_window"  # the prompt is longer than it takes
    CONTENT_POLICY = "content_policy"  # the provider does not answer such a prompt


CODES: Final[Mapping[str, Why]] = {
    "context_length_exceeded": Why.CONTEXT_WINDOW,
    "content_policy_violation": Why.CONTENT_POLICY,
    "provider_not_found": Why.UNAVAILABLE,  # a deployment that has gone, most of all at Azure
}
"""Errors that say by their code, and not by their status, what they mean."""


class Fallbacks:
    """The tables of the configuration, read once."""

    def __init__(
        self,
        general: Table,
        context_window: Table | None = None,
        content_policy: Table | None = None,
        default: tuple[str, ...] = (),
        limit: int = MAX_FALLBACKS,
    ) -> None:
        self._general = {ANY: default, **general} if default else dict(general)
        self._special = {Why.CONTEXT_WINDOW: context_window or {}, Why.CONTENT_POLICY: content_policy or {}}
        self._limit = limit

    @classmethod
    def of(cls, settings: ProviderSettings) -> "Fallbacks":
        """Those of ``router_settings``, where it has a table of a kind, else those of ``litellm_settings``."""
        router, other = settings.router_settings, settings.litellm_settings
        return cls(
            table(router.fallbacks or other.fallbacks),
            table(router.context_window_fallbacks or other.context_window_fallbacks),
            table(router.content_policy_fallbacks or other.content_policy_fallbacks),
            router.default_fallbacks or other.default_fallbacks,
            MAX_FALLBACKS if router.max_fallbacks is None else router.max_fallbacks,
        )

    def fallbacks_of(self, model: str, why: Why) -> tuple[str, ...]:
        """The models to ask instead, in order: each one's own fallbacks come after it, and no model comes twice.

        A prompt that is too long, or not liked, goes where its own table says; where that has no line for the model,
        no other is asked, unless there is no such table at all.
        """
        chain: list[str] = []
        self._extend(chain, model, {model}, self._special.get(why) or self._general)
        return tuple(chain)

    def _extend(self, chain: list[str], model: str, seen: set[str], table: Table) -> None:
        for other in table[model] if model in table else table.get(ANY, ()):
            if other not in seen and len(chain) < self._limit:
                seen.add(other)
                chain.append(other)
                self._extend(chain, other, seen, table)

    def names(self) -> set[str]:
        """All models that something falls back to."""
        tables = (self._general, *self._special.values())
        return {other for table in tables for others in table.values() for other in others}


def why_of(error: ApiError) -> Why | None:
    """What an error of a worker or provider means for fallbacks; None for one that another model would answer too."""
    if error.code is not None and error.code in CODES:
        return CODES[error.code]
    if error.status == 429:
        return Why.QUEUE_FULL
    return Why.UNAVAILABLE if error.status >= 500 else None


def table(entries: FallbackTable) -> dict[str, tuple[str, ...]]:
    """``[{a: [b]}, {a: [c]}]`` as ``{a: (b, c)}``."""
    merged: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        for model, others in entry.items():
            merged[model] = (*merged.get(model, ()), *others)
    return merged


def rename(body: bytes, model: str) -> bytes:
    """The same JSON object with another ``model``; all else stays as it was written.

    Raises msgspec.DecodeError for what is no JSON object; the relay has looked at that before.
    """
    fields = _fields.decode(body)
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)
