"""LiteLLM's answers as the bytes of OpenAI's and Anthropic's APIs: pure."""

import itertools
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from utils.errors import ApiError

DONE: Final = b"data: [DONE]\n\n"
ENDS_WITH_DONE: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
ANTHROPIC_TYPES: Final[Mapping[int, str]] = {
    400: "invalid_request_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def whole(answer: Any) -> bytes:
    """An answer that is no stream, as JSON."""
    fields = fields_of(answer)
    for choice in fields.get("choices", ()):
        choice.setdefault("logprobs", None)
        if isinstance(message := choice.get("message"), dict):
            message.setdefault("content", None)
    return msgspec.json.encode(fields)


def fields_of(piece: Any) -> dict[str, Any]:
    """A pydantic object or a mapping of LiteLLM's, without its own notes and without nulls."""
    if isinstance(piece, Mapping):
        return {key: value for key, value in piece.items() if not key.startswith("_")}
    # warnings: LiteLLM's own types do not always hold what they announce.
    dumped: dict[str, Any] = piece.model_dump(mode="json", exclude_none=True, warnings=False)
    for choice in dumped.get("choices", ()):
        for part in (choice, choice.get("delta"), choice.get("message")):
            if isinstance(part, dict) and not has_content(part.get("provider_specific_fields")):
                part.pop("provider_specific_fields", None)
    return dumped


def has_content(value: Any) -> bool:
    return isinstance(value, dict) and any(item is not None for item in value.values())


class Encoder:
    """The pieces of one stream as server-sent events, in the way of its route."""

    def __init__(self, route: str) -> None:
        self._route = route
        self._numbers = itertools.count()

    def encode(self, piece: Any) -> bytes:
        if isinstance(piece, bytes):
            return piece  # /v1/messages comes ready
        if isinstance(piece, str):
            return piece.encode()
        fields = fields_of(piece)
        if self._route == "/v1/messages":
            return event(str(fields.get("type", "")), fields)
        if self._route == "/v1/responses":
            # Where LiteLLM makes the events out of a chat it does not number them all.
            return event(str(fields.get("type", "")), {**fields, "sequence_number": next(self._numbers)})
        return b"data: %b\n\n" % msgspec.json.encode(self._chunk(fields))

    def _chunk(self, fields: dict[str, Any]) -> dict[str, Any]:
        """As OpenAI sends it: a choice always says whether it ends, and usage comes in a chunk without choices."""
        usage = fields.get("usage") or {}
        if not usage.get("total_tokens"):
            fields.pop("usage", None)
        elif not any(says_something(choice) for choice in fields.get("choices", ())):
            fields["choices"] = []
        for choice in fields.get("choices", ()):
            choice.setdefault("finish_reason", None)
            choice.setdefault("logprobs", None)
            if "delta" not in choice:
                choice.setdefault("text", "")
        return fields

    def end(self) -> bytes:
        return DONE if self._route in ENDS_WITH_DONE else b""

    def error(self, error: ApiError) -> bytes:
        """The last event of a stream that broke; nothing comes after it."""
        if self._route == "/v1/messages":
            kind = ANTHROPIC_TYPES.get(error.status, "api_error")
            return event("error", {"type": "error", "error": {"type": kind, "message": error.message}})
        if self._route == "/v1/responses":
            fields = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
            return event("error", {**fields, "sequence_number": next(self._numbers)})
        return b"data: %b\n\n" % error.body()


def says_something(choice: Mapping[str, Any]) -> bool:
    return bool(choice.get("delta") or choice.get("text") or choice.get("finish_reason"))


def event(name: str, fields: Mapping[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(fields))
