"""Requests, answers and errors of providers, without LiteLLM: what becomes of a body, a piece, an exception."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.providers.errors import Hop, is_too_long, redact, to_api_error
from relay.providers.events import Encoder, whole
from relay.providers.request import OURS, SETTINGS, SHAPES, arguments, read_body
from utils.errors import ApiError, BadRequest

OPENAI = frozenset({"openai"})
OTHER = frozenset({"openai", ""})
CHAT = SHAPES["/v1/chat/completions"]
MESSAGES = [{"role": "user", "content": "hi"}]
SECRET = "s3cret-of-mine"
HOP = Hop("provider openai/m", frozenset({SECRET}))


# -- requests ------------------------------------------------------------------------------------------------------


def test_documented_parameters_are_arguments_and_others_go_into_the_body() -> None:
    given = arguments(CHAT, {"model": "m", "messages": MESSAGES, "top_p": 1, "guided_json": {}}, OPENAI, drop=False)
    assert given == {"messages": MESSAGES, "top_p": 1, "extra_body": {"guided_json": {}}}


def test_what_is_null_was_not_said() -> None:
    assert "tools" not in arguments(CHAT, {"messages": MESSAGES, "tools": None}, OPENAI, drop=False)


def test_another_protocol_gets_only_what_is_documented() -> None:
    body = {"messages": MESSAGES, "guided_json": {}}
    with pytest.raises(BadRequest) as caught:
        arguments(CHAT, body, OTHER, drop=False)
    assert (caught.value.param, caught.value.code) == ("guided_json", "unsupported_parameter")
    assert arguments(CHAT, body, OTHER, drop=True) == {"messages": MESSAGES}


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_no_client_sets_what_is_the_gateways(name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        arguments(CHAT, {"messages": MESSAGES, name: "http://evil"}, OPENAI, drop=True)
    assert caught.value.param == name


@given(st.dictionaries(st.text(), st.integers()), st.sampled_from(sorted(SHAPES)))
def test_no_unknown_field_ever_becomes_an_argument(fields: dict[str, Any], route: str) -> None:
    shape = SHAPES[route]
    needed = {"messages": MESSAGES, "prompt": "p", "query": "q", "documents": ["d"], "max_tokens": 1, "input": "i"}
    body = {key: value for key, value in fields.items() if key not in shape.takes and key not in SETTINGS}
    body.update({key: needed[key] for key in shape.needs})
    given = arguments(shape, body, OPENAI, drop=True)
    assert set(given) <= shape.takes | {"extra_body"}
    assert not set(given.get("extra_body", {})) & (shape.takes | OURS | SETTINGS)


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("/v1/chat/completions", {}, "messages"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": ["hi"]}, "messages"),
        ("/v1/chat/completions", {"messages": [{"content": "hi"}]}, "messages"),
        ("/v1/chat/completions", {"messages": MESSAGES, "stream": "yes"}, "stream"),
        ("/v1/chat/completions", {"messages": MESSAGES, "tools": {}}, "tools"),
        ("/v1/completions", {"prompt": 7}, "prompt"),
        ("/v1/embeddings", {}, "input"),
        ("/v1/rerank", {"query": "q"}, "documents"),
        ("/v1/responses", {"input": {}}, "input"),
        ("/v1/messages", {"messages": MESSAGES}, "max_tokens"),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": True}, "max_tokens"),
    ],
)
def test_a_body_of_another_shape_is_a_400_that_names_the_field(route: str, body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        arguments(SHAPES[route], body, OPENAI, drop=False)
    assert caught.value.param == param


def test_an_earlier_response_is_known_only_to_who_keeps_it() -> None:
    body = {"input": "hi", "previous_response_id": "resp_1"}
    assert arguments(SHAPES["/v1/responses"], body, OPENAI, drop=False)["previous_response_id"] == "resp_1"
    with pytest.raises(BadRequest, match="whole conversation"):
        arguments(SHAPES["/v1/responses"], body, frozenset({""}), drop=False)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"a"', b"\xff", b"7"])
def test_what_is_no_object_is_a_400(body: bytes) -> None:
    with pytest.raises(BadRequest):
        read_body(body)


# -- errors --------------------------------------------------------------------------------------------------------


class APITimeoutError(Exception):
    """As openai's, whose name counts."""


class ContentPolicyViolationError(Exception):
    status_code = 400


def failure(status: int | None, message: str, *, body: Any = None, headers: dict[str, str] | None = None) -> Exception:
    error = Exception(message)
    vars(error).update(status_code=status, message=message, body=body)
    if headers is not None:
        vars(error)["response"] = type("Response", (), {"headers": headers})()
    return error


@pytest.mark.parametrize(
    ("status", "ours", "code"),
    [(400, 400, None), (422, 400, None), (401, 502, "provider_refused_gateway"), (402, 502, "provider_refused_gateway"),
     (403, 502, "provider_refused_gateway"), (404, 404, "provider_not_found"), (413, 413, None),
     (408, 504, "provider_timeout"), (429, 429, "provider_rate_limit"), (500, 502, "provider_broke"),
     (502, 502, "provider_broke"), (503, 503, "no_replica_ready"), (504, 504, "provider_timeout"),
     (529, 503, "no_replica_ready"), (None, 502, "provider_broke"), (418, 502, "provider_broke")],
)  # fmt: skip
def test_a_status_becomes_ours_and_names_the_hop(status: int | None, ours: int, code: str | None) -> None:
    found = to_api_error(failure(status, "litellm.XError: OpenAIException - no"), HOP)
    assert (found.status, found.code) == (ours, code)
    assert found.message.startswith("provider openai/m")


@pytest.mark.parametrize(
    "words",
    ["This model's maximum context length is 4096 tokens", "prompt is too long: 9 tokens > 5 maximum",
     "context_length_exceeded", "the request exceeds the available context size",
     "The input token count (9) exceeds the maximum number of tokens allowed (5)."],
)  # fmt: skip
def test_a_prompt_that_is_too_long_is_told_apart(words: str) -> None:
    found = to_api_error(failure(400, words), HOP)
    assert (found.status, found.code) == (400, "context_length_exceeded")
    assert is_too_long(words)
    assert not is_too_long("temperature must be a number")


def test_what_the_provider_does_not_like_is_told_apart() -> None:
    assert to_api_error(ContentPolicyViolationError("no"), HOP).code == "content_policy_violation"


def test_a_timeout_is_one_by_its_kind() -> None:
    assert to_api_error(APITimeoutError("x"), HOP).status == 504


@pytest.mark.parametrize(("text", "seconds"), [("17", b"17"), ("0", b"2"), ("soon", b"2"), ("999999999", b"2")])
def test_retry_after_is_the_providers_if_it_is_sane(text: str, seconds: bytes) -> None:
    assert to_api_error(failure(429, "slow", headers={"retry-after": text}), HOP).headers == (
        (b"retry-after", seconds),
    )


def test_deployments_that_cool_down_are_a_503() -> None:
    error = ValueError("No deployments available")
    vars(error)["cooldown_time"] = 4.2
    found = to_api_error(error, HOP)
    assert (found.status, found.headers) == (503, ((b"retry-after", b"5"),))


@pytest.mark.parametrize(
    "message",
    [
        "litellm.BadRequestError: OpenAIException - no such thing",
        'litellm.BadRequestError: Hosted_vllmException - {"error": {"message": "no such thing", "type": "x"}}',
        'AnthropicException - {"type": "error", "error": {"type": "x", "message": "no such thing"}}',
        "litellm.BadRequestError: no such thing\n\nLiteLLM: model group 'h' failed with the error above.",
        "litellm.APIConnectionError: APIConnectionError: XException - no such thing LiteLLM Retried: 2 times",
    ],
)
def test_the_providers_own_words_remain(message: str) -> None:
    assert to_api_error(failure(400, message), HOP).message == "provider openai/m: no such thing"


def test_param_and_code_of_the_provider_are_kept() -> None:
    body = {"message": "too hot", "param": "temperature", "code": "hot"}
    found = to_api_error(failure(400, "x", body=body), HOP)
    assert (found.message, found.param, found.code) == ("provider openai/m: too hot", "temperature", "hot")


def test_what_a_stream_broke_with_counts() -> None:
    outer = failure(503, "mid stream")
    vars(outer)["original_exception"] = failure(400, "inner")
    assert to_api_error(outer, HOP).message == "provider openai/m: inner"


@given(st.text(), st.integers(300, 599), st.text())
def test_no_secret_is_in_any_error(before: str, status: int, after: str) -> None:
    message = f"{before}{SECRET}{after}"
    for body in (None, {"message": message}):
        assert SECRET not in to_api_error(failure(status, message, body=body), HOP).message
    assert SECRET not in repr(HOP)


@pytest.mark.parametrize("key", ["sk-abcdef1234567890", "sk-pro*******f12", "Bearer abcdefgh", "AIza-Sy12345678"])
def test_what_looks_like_a_key_is_not_shown(key: str) -> None:
    assert redact(f"Incorrect key {key}.", ()) == "Incorrect key ***"


# -- answers -------------------------------------------------------------------------------------------------------


def test_notes_of_litellm_do_not_go_out() -> None:
    assert json.loads(whole({"a": 1, "_hidden_params": {"api_base": "x"}})) == {"a": 1}


class Broken(ApiError):
    status = 502


@pytest.mark.parametrize(
    ("route", "start"),
    [("/v1/chat/completions", b'data: {"error": '), ("/v1/completions", b'data: {"error": '),
     ("/v1/messages", b"event: error\ndata: "), ("/v1/responses", b"event: error\ndata: ")],
)  # fmt: skip
def test_a_broken_stream_ends_in_the_way_of_its_route(route: str, start: bytes) -> None:
    encoder = Encoder(route)
    last = encoder.error(Broken("it broke"))
    assert last.startswith(start)
    assert last.endswith(b"\n\n")
    assert b"it broke" in last
    assert encoder.end() == (b"data: [DONE]\n\n" if "completions" in route else b"")
