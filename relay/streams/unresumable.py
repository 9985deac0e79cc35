"""Where an answer cannot go on at another replica, because it would not be the one that was asked for.

Fields as in OpenAI's API, and those of vLLM 0.32 and SGLang 0.5.23 beside them (their ``protocol.py``).
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from relay.streams.said import Said

Body = Mapping[str, Any]

CHAT: Final = "/v1/chat/completions"
COMPLETION: Final = "/v1/completions"

_GRAMMAR: Final = "a grammar would begin anew"
_STATE: Final = "its state is at the replica that broke"
_PROMPT: Final = "its prompt is no text that could be made longer"
_DETAILS: Final = "what is told about tokens could not be joined"
FIELDS: Final[Mapping[str, str]] = {
    "structured_outputs": _GRAMMAR, "json_schema": _GRAMMAR, "regex": _GRAMMAR, "ebnf": _GRAMMAR, "grammar": _GRAMMAR,
    "structural_tag": _GRAMMAR, "stop_regex": "a match could begin before the break",
    "logprobs": _DETAILS, "prompt_logprobs": _DETAILS, "echo": "the echo would come twice",
    "use_beam_search": "beams would begin anew", "functions": "a call could be cut in two",
    "prompt_embeds": _PROMPT, "input_ids": _PROMPT, "prompt_token_ids": _PROMPT, "suffix": _PROMPT,
    "truncate_prompt_tokens": "a longer prompt would be cut elsewhere", "audio": "sound cannot be joined",
    "custom_logit_processor": "it would begin anew", "logits_processors": "they would begin anew",
    "session_params": _STATE, "kv_transfer_params": _STATE, "ec_transfer_params": _STATE, "bootstrap_host": _STATE,
    "bootstrap_room": _STATE,
}  # fmt: skip
"""Not possible with any of these given."""
PREFIXES: Final[Mapping[str, str]] = {"guided_": _GRAMMAR, "return_": _DETAILS}
THINKING: Final = ("<think>", "</think>", "[THINK]", "<|channel|>")
"""Marks of reasoning in the text itself. Templates cut it out of earlier messages."""
STREAM_OPTIONS: Final = ("include_usage", "continuous_usage_stats")


def why_not(route: str, body: Body, said: Said) -> str:
    """Why an answer that has said something cannot go on, as a clause; "" if it can.

    Not looked at, though the answer may come out slightly different: frequency and presence penalties and
    ``repetition_detection`` begin to count anew, for what was said is then a part of the prompt.
    """
    checks: tuple[Callable[[str, Body, Said], str], ...] = (
        _by_what_was_said, _by_field, _by_tools, _by_format, _by_number, _by_seed, _by_options, _by_stops,
        _by_messages if route == CHAT else _by_prompt,
    )  # fmt: skip
    return next((why for check in checks if (why := check(route, body, said))), "")


def is_given(value: Any) -> bool:
    """0 is given: ``logprobs: 0`` asks for some."""
    return not (value is None or value is False or value in ("", [], {}))


def _by_what_was_said(_: str, body: Body, said: Said) -> str:
    if said.error or said.done:
        return "it was ended by its engine"
    if said.begun - {0} or said.finished:
        return "it has several choices"
    if said.other:
        return f"it has {said.other}"
    hides_reasoning = body.get("include_reasoning") is False
    if said.has_reasoning or hides_reasoning or any(mark in said.text for mark in THINKING):
        return "it has reasoning, which would not be taken up again"
    return ""


def _by_field(route: str, body: Body, _: Said) -> str:
    for name, value in body.items():
        if is_given(value):
            why = FIELDS.get(name) or next((why for start, why in PREFIXES.items() if name.startswith(start)), "")
            if why:
                return f"it asks for {name}, and {why}"
    return ""


def _by_tools(_: str, body: Body, __: Said) -> str:
    has_tools = is_given(body.get("tools")) and body.get("tool_choice") != "none"
    return "it has tools, and a call could be cut in two" if has_tools else ""


def _by_format(_: str, body: Body, __: Said) -> str:
    wanted = body.get("response_format")
    if is_given(wanted) and not (isinstance(wanted, dict) and wanted.get("type") == "text"):
        return f"it asks for response_format, and {_GRAMMAR}"
    modalities = body.get("modalities")
    return "it asks for modalities beside text" if is_given(modalities) and modalities != ["text"] else ""


def _by_number(_: str, body: Body, __: Said) -> str:
    several = next((name for name in ("n", "best_of") if body.get(name) not in (None, 1)), "")
    return f"it asks for several answers by {several}" if several else ""


def _by_seed(_: str, body: Body, __: Said) -> str:
    is_random = body.get("temperature") != 0  # by default it is 1
    return "it has a seed, and the dice would be thrown anew" if is_random and body.get("seed") is not None else ""


def _by_options(_: str, body: Body, __: Said) -> str:
    options = body.get("stream_options")
    if options is None:
        return ""
    is_plain = isinstance(options, dict) and all(options.get(name) in (None, True, False) for name in STREAM_OPTIONS)
    return "" if is_plain else "its stream_options are not understood"


def _by_stops(_: str, body: Body, said: Said) -> str:
    """A stop string (or bad word) that would begin in what was said and end in what comes is not seen by any engine.

    Engines hold text back that may begin one, vLLM always as much as it is long, SGLang while it matches; but not if
    the stop string itself is to be shown, and vLLM's text may still end in its beginning.
    """
    for name in ("stop", "bad_words"):
        given = body.get(name)
        words = [given] if isinstance(given, str) else given or []
        if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
            return f"its {name} is not understood"
        if any(straddles(said.text, word) for word in words):
            return f"what it has said may be the beginning of one of {name}"
    return ""


def straddles(text: str, word: str) -> bool:
    """Whether a text ends as ``word`` begins, without the whole of it."""
    return any(text.endswith(word[:length]) for length in range(1, len(word)))


def _by_messages(_: str, body: Body, __: Said) -> str:
    messages = body.get("messages")
    if not (isinstance(messages, list) and messages and isinstance(messages[-1], dict)):
        return "its messages are not understood"
    is_answer, goes_on = messages[-1].get("role") == "assistant", bool(body.get("continue_final_message"))
    if is_answer != goes_on:
        return "engines differ in what they make of its last message"
    if goes_on and not isinstance(messages[-1].get("content"), str):
        return "its last message is no plain text that could be made longer"
    if not goes_on and body.get("add_generation_prompt") is False:
        return "its answer does not begin as an answer does"
    return ""


def _by_prompt(_: str, body: Body, __: Said) -> str:
    prompt = body.get("prompt")
    is_one = isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str)
    return "" if isinstance(prompt, str) or is_one else "its prompt is not one text"
