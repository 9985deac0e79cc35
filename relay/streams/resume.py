"""How a broken stream goes on elsewhere: the request that another replica gets, or why there is none.

A chat goes on by ``continue_final_message`` with the answer so far, a completion by a longer prompt. The tokens of
that text are found anew, so a cut inside what the tokenizer likes to join may change a greedy answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from relay.streams.said import Said, read_passed
from relay.streams.unresumable import CHAT, COMPLETION, why_not

COMPLETION_TOKENS: Final = 16
"""What OpenAI, vLLM and SGLang take for a completion's ``max_tokens`` where it is not given."""

RawObject = dict[str, msgspec.Raw]


@dataclass(frozen=True, slots=True)
class Continuation:
    """Another replica can go on: ``body`` is for it, the rest is for ``Splice``."""

    body: bytes
    said: Said
    wants_usage: bool
    wants_continuous_usage: bool
    uncounted: str = ""
    """The text whose tokens matter but were only estimated: to be counted, and ``continuation`` to be asked again."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The answer is whole, or as long as it may be; only its end is missing: these events, to be sent last."""

    events: bytes


@dataclass(frozen=True, slots=True)
class Unresumable:
    """``reason`` is a clause: "it has tools, and ..."."""

    reason: str


def continuation(
    route: str, body: bytes, passed: Sequence[bytes], counted: int | None = None
) -> Continuation | Ending | Unresumable:
    """``body``: the client's own, also when the stream breaks again. ``passed``: whole events, all that it has got.

    ``counted``: the tokens of the text in them, if somebody has counted them.
    """
    if route not in (CHAT, COMPLETION):
        return Unresumable(f"an answer of {route} cannot")
    try:
        said = read_passed(passed)
        fields: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
        raw: RawObject = msgspec.json.decode(body, type=RawObject)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        return Unresumable(f"it is not understood: {error}")
    if said.is_finished and not said.error:
        return Ending(b"" if said.done else ending(said, fields))
    if said.is_nothing:
        return Continuation(body, said, wants_usage=True, wants_continuous_usage=True)
    if why := why_not(route, fields, said):
        return Unresumable(why)
    is_estimated = counted is None and not said.has_continuous_usage
    if counted is not None:
        said.tokens = max(said.tokens, counted)  # an event may have several tokens, but hardly less than one
    return _go_on(route, raw, fields, said, is_estimated=is_estimated)


def _go_on(
    route: str, raw: RawObject, fields: dict[str, Any], said: Said, *, is_estimated: bool
) -> Continuation | Ending | Unresumable:
    try:
        left = tokens_left(route, fields, said.tokens)
    except ValueError as error:
        return Unresumable(str(error))
    if is_used_up(left):
        return Ending(ending(said, fields, "length"))
    for name, tokens in left.items():
        raw[name] = encode(max(tokens, 0 if name == "min_tokens" else 1))
    longer = chat_gone_on if route == CHAT else completion_gone_on
    wants_usage = bool((fields.get("stream_options") or {}).get("include_usage"))
    return Continuation(
        msgspec.json.encode(longer(raw, said.text)),
        said,
        wants_usage=wants_usage or said.has_continuous_usage,
        wants_continuous_usage=said.has_continuous_usage,
        uncounted=said.text if is_estimated and (left or wants_usage) else "",
    )


def tokens_left(route: str, fields: dict[str, Any], tokens: int) -> dict[str, int]:
    """The limits that the request sets, less the tokens so far: 0 or below for what is used up.

    Raises ValueError for one that is no whole number.
    """
    limits = {name: fields.get(name) for name in ("max_tokens", "max_completion_tokens", "min_tokens")}
    if route == COMPLETION and "max_tokens" not in fields:
        limits["max_tokens"] = COMPLETION_TOKENS
    given = {name: limit for name, limit in limits.items() if limit is not None}
    for name, limit in given.items():
        if not isinstance(limit, int) or isinstance(limit, bool):
            raise ValueError(f"its {name} is no whole number")
    return {name: limit - tokens for name, limit in given.items()}


def is_used_up(left: dict[str, int]) -> bool:
    """Of two limits engines take either one: only when both are reached is it sure that nothing more may come."""
    most = [tokens for name, tokens in left.items() if name != "min_tokens"]
    return bool(most) and max(most) <= 0


def chat_gone_on(body: RawObject, text: str) -> RawObject:
    """The request with the answer so far as its last message, or with that message longer, if it went on already."""
    messages = msgspec.json.decode(body["messages"], type=list[msgspec.Raw])
    if msgspec.json.decode(body.get("continue_final_message", b"false")):
        last = msgspec.json.decode(messages[-1], type=RawObject)
        last["content"] = encode(msgspec.json.decode(last["content"], type=str) + text)
        return {**body, "messages": encode([*messages[:-1], last])}
    answer = encode({"role": "assistant", "content": text})
    opened = {"continue_final_message": encode(True), "add_generation_prompt": encode(False)}
    return {**body, "messages": encode([*messages, answer]), **opened}


def completion_gone_on(body: RawObject, text: str) -> RawObject:
    prompt = msgspec.json.decode(body["prompt"], type=str | list[str])
    return {**body, "prompt": encode(prompt + text if isinstance(prompt, str) else [prompt[0] + text])}


def encode(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def ending(said: Said, fields: dict[str, Any], finish_reason: str = "") -> bytes:
    """What a stream lacks that has said all its words: finish reason, usage, ``[DONE]``.

    Usage only where it is known, which takes ``continuous_usage_stats``: OpenAI's clients are told that a stream that
    was interrupted may come without.
    """
    chunks: list[dict[str, Any]] = []
    if finish_reason:
        last: dict[str, Any] = {"delta": {}} if b"chat" in bytes(said.head.get("object", b"")) else {"text": ""}
        chunks.append({"choices": [{"index": 0, **last, "finish_reason": finish_reason}]})
    wants_usage = bool((fields.get("stream_options") or {}).get("include_usage"))
    if wants_usage and said.usage is not None and not said.has_final_usage:
        prompt, completion = said.usage.prompt_tokens or 0, said.usage.completion_tokens or 0
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        chunks.append({"choices": [], "usage": usage})
    events = [b"data: %b\n\n" % msgspec.json.encode({**said.head, **chunk}) for chunk in chunks]
    return b"".join(events) + b"data: [DONE]\n\n"
