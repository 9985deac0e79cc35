"""A client's request, read at the door."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.request import check_content_type, parse_fields
from tests.doubles import JUMPING, PATIENT
from utils.errors import BadRequest, UnsupportedMediaType

LIMIT, TIMEOUT_S = 1000, 30.0
CLOSE = (b"connection", b"close")


@pytest.fixture
def anyio_backend() -> object:
    return JUMPING


# -- fields --------------------------------------------------------------------------------------------------------


def test_only_what_routing_needs_is_read() -> None:
    fields = parse_fields(b'{"messages": [1, {"a": null}], "model": "org/m", "stream": true, "x": 1e99}')
    assert (fields.model, fields.stream) == ("org/m", True)


@pytest.mark.parametrize("body", [b'{"model": "m"}', b'{"model": "m", "stream": null}'])
def test_stream_may_be_left_out(body: bytes) -> None:
    assert not parse_fields(body).stream


@pytest.mark.parametrize(
    ("body", "words", "param"),
    [
        (b"", "not valid JSON", None),
        (b"{", "not valid JSON", None),
        (b'{"model": "m", "n": 129}', "at most 128", "n"),
        (b'{"model": "m", "n": "many"}', "wrong type", "n"),
        (b'{"model": "m"} x', "not valid JSON", None),
        (b"model=m", "not valid JSON", None),
        (b'{"model": "\xff"}', "not valid JSON", None),
        (b'{"model": "\\ud800"}', "not valid JSON", None),
        (b'{"model": "m", "x": NaN}', "not valid JSON", None),
        (b"[]", "must be a JSON object", None),
        (b'"m"', "must be a JSON object", None),
        (b"null", "must be a JSON object", None),
        (b"{}", "model is missing", "model"),
        (b'{"model": ""}', "model is missing", "model"),
        (b'{"model": null}', "wrong type", "model"),
        (b'{"model": 7}', "wrong type", "model"),
        (b'{"model": "m", "stream": "yes"}', "wrong type", "stream"),
        (b'{"model": "m", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply", None),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_body_that_cannot_be_routed_is_a_bad_request_that_says_why(body: bytes, words: str, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_fields(body)
    assert words in caught.value.message
    assert caught.value.param == param


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(PATIENT, max_examples=50)
@given(st.dictionaries(st.text().filter(lambda key: key != "n"), json_values), st.text(min_size=1))
def test_whatever_else_a_body_holds_the_model_is_found(others: dict[str, Any], model: str) -> None:
    body = json.dumps({**others, "stream": False, "model": model}).encode()
    assert parse_fields(body).model == model


@settings(PATIENT, max_examples=50)
@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_body_ends_in_anything_but_fields_or_a_bad_request(body: bytes) -> None:
    try:
        assert parse_fields(body).model
    except BadRequest as error:
        assert error.body()


@pytest.mark.parametrize("value", [b"application/json", b"Application/JSON; charset=utf-8", b"application/json;"])
def test_json_is_taken(value: bytes) -> None:
    check_content_type({b"content-type": value})


@pytest.mark.parametrize("value", [None, b"", b"text/plain", b"application/jsonl", b"multipart/form-data; boundary=x"])
def test_other_content_types_are_refused_by_name(value: bytes | None) -> None:
    with pytest.raises(UnsupportedMediaType, match="application/json") as caught:
        check_content_type({} if value is None else {b"content-type": value})
    assert (value or b"none").decode() in caught.value.message
