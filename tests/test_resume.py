"""The request that goes on with a broken stream, and where there is none."""

import json
from typing import Any

import pytest

from relay.streams.events import error_event
from relay.streams.resume import Continuation, Ending, Unresumable, continuation
from relay.streams.unresumable import CHAT, COMPLETION, straddles
from tests.model_double import DONE, REFUSED, View, sse, usage_of
from utils.errors import WorkerBroke

USER = {"role": "user", "content": "Count."}
HEAD = {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m"}
TEXT_HEAD = {**HEAD, "object": "text_completion"}


def delta(finish: str | None = None, index: int = 0, usage: dict[str, Any] | None = None, **delta: Any) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return sse({**HEAD, "choices": [choice], **({"usage": usage} if usage else {})})


def text(text: str, finish: str | None = None) -> bytes:
    return sse({**TEXT_HEAD, "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}]})


ROLE = delta(role="assistant", content="")
ONE_TWO = [ROLE, delta(content="One"), delta(content=", two")]


def chat(passed: list[bytes], **more: Any) -> Continuation | Ending | Unresumable:
    return continuation(CHAT, json.dumps({"model": "m", "stream": True, "messages": [USER], **more}).encode(), passed)


def complete(passed: list[bytes], **more: Any) -> Continuation | Ending | Unresumable:
    return continuation(COMPLETION, json.dumps({"model": "m", "prompt": "Count: ", **more}).encode(), passed)


def asked(answer: Continuation | Ending | Unresumable) -> dict[str, Any]:
    assert isinstance(answer, Continuation), answer
    body: dict[str, Any] = json.loads(answer.body)
    return body


def reason(answer: Continuation | Ending | Unresumable) -> str:
    assert isinstance(answer, Unresumable), answer
    return answer.reason


def ended(answer: Continuation | Ending | Unresumable) -> View:
    assert isinstance(answer, Ending), answer
    return View.of(answer.events)


# -- what is asked -------------------------------------------------------------------------------------------------


def test_a_chat_goes_on_by_an_open_message() -> None:
    assert asked(chat(ONE_TWO, temperature=0)) == {
        "model": "m",
        "stream": True,
        "messages": [USER, {"role": "assistant", "content": "One, two"}],
        "temperature": 0,
        "continue_final_message": True,
        "add_generation_prompt": False,
    }


def test_a_message_that_was_open_already_becomes_longer() -> None:
    begun = {"role": "assistant", "content": "So: ", "name": "x"}
    body = asked(chat(ONE_TWO, messages=[USER, begun], continue_final_message=True, add_generation_prompt=False))
    assert body["messages"] == [USER, {**begun, "content": "So: One, two"}]
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


@pytest.mark.parametrize(("prompt", "longer"), [("Count: ", "Count: 1, 2"), (["Count: "], ["Count: 1, 2"])])
def test_a_completion_goes_on_by_a_longer_prompt(prompt: Any, longer: Any) -> None:
    body = asked(complete([text("1, "), text("2")], prompt=prompt, max_tokens=5))
    assert body == {"model": "m", "prompt": longer, "max_tokens": 3}


@pytest.mark.parametrize(("counted", "left"), [(None, 8), (1, 8), (5, 5), (9, 1)])
def test_tokens_that_were_counted_come_before_events(counted: int | None, left: int) -> None:
    body = json.dumps({"messages": [USER], "max_tokens": 10}).encode()
    answer = continuation(CHAT, body, ONE_TWO, counted)
    assert asked(answer)["max_tokens"] == left
    assert isinstance(answer, Continuation)
    assert answer.uncounted == ("One, two" if counted is None else "")


def test_all_tokens_counted_is_the_end() -> None:
    body = json.dumps({"messages": [USER], "max_tokens": 10}).encode()
    assert ended(continuation(CHAT, body, ONE_TWO, 10)).finishes == ["length"]


def test_numbers_and_unknown_fields_stay_as_they_were_written() -> None:
    written = b'"x": [0.10000000000000000001, 123456789012345678901234567890, -0.0, {"y": 1E5}], "top_p": 1.0'
    body = b'{"model": "m", "messages": [{"role": "user", "content": "\\u00e9", "z": 1.50}], %b}' % written
    answer = continuation(CHAT, body, ONE_TWO)
    assert isinstance(answer, Continuation)
    assert b"[0.10000000000000000001, 123456789012345678901234567890, -0.0, " in answer.body
    assert b'"top_p":1.0' in answer.body
    assert b'{"role": "user", "content": "\\u00e9", "z": 1.50}' in answer.body


@pytest.mark.parametrize("passed", [[], [ROLE], [b": hello\n\n", ROLE], [delta(role="assistant", content=None)]])
@pytest.mark.parametrize("more", [{}, {"tools": [{"type": "function"}], "logprobs": True, "n": 2, "seed": 1}])
def test_before_the_first_word_the_request_is_asked_again_whatever_it_is(passed: list[bytes], more: Any) -> None:
    body = json.dumps({"messages": [USER], **more}).encode()
    answer = continuation(CHAT, body, passed)
    assert isinstance(answer, Continuation)
    assert answer.body == body


# -- how much may come ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({"max_tokens": 10}, {"max_tokens": 8}),
        ({"max_completion_tokens": 3}, {"max_completion_tokens": 1}),
        ({"max_tokens": None}, {"max_tokens": None}),
        ({"max_tokens": 2, "max_completion_tokens": 10}, {"max_tokens": 1, "max_completion_tokens": 8}),
        ({"min_tokens": 5}, {"min_tokens": 3}),
        ({"min_tokens": 1, "max_tokens": 10}, {"min_tokens": 0, "max_tokens": 8}),
        ({}, {}),
    ],
)
def test_limits_shrink_by_what_was_said(limits: dict[str, Any], left: dict[str, Any]) -> None:
    body = asked(chat(ONE_TWO, **limits))
    assert {name: body[name] for name in body if name.endswith("tokens")} == left


def test_a_completion_without_a_limit_has_sixteen_tokens() -> None:
    assert asked(complete([text("1, ")]))["max_tokens"] == 15
    assert asked(complete([text("1, ")], max_tokens=None))["max_tokens"] is None


def test_an_events_usage_counts_better_than_events() -> None:
    passed = [ROLE, delta(content="One, two", usage=usage_of(0, 4)), delta(content="", usage=usage_of(0, 5))]
    assert asked(chat(passed, max_tokens=10))["max_tokens"] == 6  # half a character at the end comes again


def test_events_without_text_count_once_text_has_come() -> None:
    passed = [ROLE, delta(content=""), delta(content="é"), delta(content="")]
    assert asked(chat(passed, max_tokens=10))["max_tokens"] == 8


@pytest.mark.parametrize("limit", [True, 7.5, "7"])
def test_a_limit_that_is_no_number_is_not_guessed(limit: Any) -> None:
    assert reason(chat(ONE_TWO, max_tokens=limit)) == "its max_tokens is no whole number"


# -- what only lacks its end ---------------------------------------------------------------------------------------


def test_a_full_answer_is_ended_by_us() -> None:
    usage = usage_of(0, 2)
    view = ended(chat([ROLE, delta(content="One", usage=usage)], max_tokens=2, stream_options={"include_usage": True}))
    assert (view.finishes, view.usage, view.done, view.heads) == (["length"], [usage], 1, {("a", 1, "m")})
    view = ended(complete([text("1, ")], max_tokens=1))
    assert (view.finishes, view.usage, view.done) == (["length"], [], 1)


def test_a_finished_answer_gets_its_done() -> None:
    passed = [*ONE_TWO, delta("stop")]
    assert ended(chat(passed, tools=[{"type": "function"}])) == View(set(), set(), [], "", [], [], [], 1)
    counted = [*ONE_TWO, delta("stop", usage=usage_of(0, 3))]
    options = {"include_usage": True}
    assert ended(chat(counted, stream_options=options)).usage == [usage_of(0, 3)]
    assert (
        ended(chat([*counted, sse({**HEAD, "choices": [], "usage": usage_of(0, 3)})], stream_options=options)).usage
        == []
    )
    assert chat([*passed, DONE]) == Ending(b"")


# -- where there is no going on ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "function"}], "tool_choice": "auto"}, "tools"),
        ({"functions": [{}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": "?"}, "response_format"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"guided_json": {"type": "object"}}, "guided_json"),
        ({"regex": "a+"}, "regex"),
        ({"ebnf": "root ::= a"}, "ebnf"),
        ({"logprobs": True}, "logprobs"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"return_token_ids": True}, "return_token_ids"),
        ({"n": 2}, "by n"),
        ({"best_of": 2}, "by best_of"),
        ({"use_beam_search": True}, "beams"),
        ({"seed": 7}, "seed"),
        ({"seed": 0, "temperature": 0.1}, "seed"),
        ({"echo": True}, "echo"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"stop": ["two three"]}, "stop"),
        ({"stop": "o\n"}, "stop"),
        ({"stop": 7}, "stop is not understood"),
        ({"stop_regex": "a+"}, "stop_regex"),
        ({"bad_words": ["o x"]}, "bad_words"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"input_ids": [1]}, "input_ids"),
        ({"kv_transfer_params": {"a": 1}}, "kv_transfer_params"),
        ({"include_reasoning": False}, "reasoning"),
        ({"stream_options": "all"}, "stream_options"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options"),
        ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "last message"),
        ({"messages": [USER, {"role": "assistant", "content": "x"}], "continue_final_message": False}, "last message"),
        ({"continue_final_message": True}, "last message"),
        ({"messages": [{"role": "assistant", "content": []}], "continue_final_message": True}, "no plain text"),
        ({"add_generation_prompt": False}, "does not begin"),
        ({"messages": []}, "messages"),
        ({"messages": "?"}, "messages"),
    ],
)
def test_what_could_not_be_right_is_not_tried(more: dict[str, Any], words: str) -> None:
    assert words in reason(chat(ONE_TWO, **more))


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"type": "function"}], "tool_choice": "none"},
        {
            "tools": [],
            "functions": None,
            "response_format": None,
            "logprobs": False,
            "echo": False,
            "n": 1,
            "best_of": None,
        },
        {"response_format": {"type": "text"}, "modalities": ["text"]},
        {"seed": 7, "temperature": 0},
        {"seed": None, "temperature": 0.7},
        {"stop": ["three", "\n", ""], "bad_words": [], "stop_token_ids": [2]},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": None}},
        {"frequency_penalty": 0.5, "logit_bias": {"1": 2}, "top_k": 5, "unknown": {"x": 1}},
    ],
)
def test_what_can_be_right_is_tried(more: dict[str, Any]) -> None:
    assert asked(chat(ONE_TWO, **more))["messages"][-1]["content"] == "One, two"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"prompt": [1, 2, 3]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"logprobs": 0}, "logprobs"),
        ({"suffix": "end"}, "suffix"),
        ({"prompt_embeds": "x"}, "prompt_embeds"),
    ],
)
def test_a_completion_goes_on_only_from_one_text(more: dict[str, Any], words: str) -> None:
    assert words in reason(complete([text("1, ")], **more))


@pytest.mark.parametrize(
    ("passed", "words"),
    [
        ([ROLE, delta(reasoning="Hm")], "reasoning"),
        ([ROLE, delta(reasoning_content="Hm"), delta(content="One")], "reasoning"),
        ([ROLE, delta(content="<think>Hm")], "reasoning"),
        ([ROLE, delta(tool_calls=[{"index": 0, "function": {"name": "f"}}])], "tool_calls"),
        ([ROLE, delta(content=[{"type": "text", "text": "x"}])], "content"),
        ([ROLE, delta(content="a"), delta(content="b", index=1)], "several choices"),
        ([*ONE_TWO, REFUSED], "ended by its engine"),
        ([*ONE_TWO, DONE], "ended by its engine"),
        ([*ONE_TWO, b"data: {\n\n"], "not understood"),
        ([*ONE_TWO, b'data: {"choices": 7}\n\n'], "not understood"),
        ([b"data: " + b"x" * (5 << 20) + b"\n\n"], "not understood"),
    ],
)
def test_what_was_said_may_forbid_it(passed: list[bytes], words: str) -> None:
    assert words in reason(chat(passed))


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"messages": \xff}', b"[" * 100_000])
def test_a_body_that_is_not_understood_forbids_it(body: bytes) -> None:
    assert "not understood" in reason(continuation(CHAT, body, ONE_TWO))


def test_other_routes_do_not_go_on() -> None:
    assert "/v1/messages" in reason(continuation("/v1/messages", b"{}", []))


@pytest.mark.parametrize(
    ("said", "word", "expected"),
    [("One,", ", two", True), ("One", "One", False), ("One", "ONE", False), ("", "x", False), ("a\n", "\n\n", True)],
)
def test_a_word_straddles_where_a_text_ends_in_its_beginning(said: str, word: str, expected: bool) -> None:
    assert straddles(said, word) is expected


def test_the_last_event_of_a_stream_that_cannot_go_on_is_openais_error() -> None:
    [error] = View.of(error_event(WorkerBroke("worker w broke; it has tools", code="worker_broke"))).errors
    assert error == {
        "message": "worker w broke; it has tools",
        "type": "server_error",
        "param": None,
        "code": "worker_broke",
    }
    assert DONE not in error_event(WorkerBroke("x"))
