"""A client's request, read at the door."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.request import ClientGone, check_content_type, parse_fields, read_body
from tests.doubles import JUMPING, PATIENT
from utils.errors import ApiError, BadRequest, PayloadTooLarge, RequestTimeout, UnsupportedMediaType

LIMIT, TIMEOUT_S = 1000, 30.0
CLOSE = (b"connection", b"close")


@pytest.fixture
def anyio_backend() -> object:
    return JUMPING


# -- fields --------------------------------------------------------------------------------------------------------


def test_only_model_and_stream_are_read() -> None:
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
@given(st.dictionaries(st.text(), json_values), st.text(min_size=1))
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


# -- the body ------------------------------------------------------------------------------------------------------

DISCONNECT = {"type": "http.disconnect"}


def piece(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


class Client:
    """Sends its messages one by one, then stays silent. Counts what was taken from it."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self._messages = list(messages)
        self.taken = 0

    async def receive(self) -> dict[str, Any]:
        if self.taken == len(self._messages):
            await asyncio.Event().wait()
        self.taken += 1
        return self._messages[self.taken - 1]

    async def read(self, **headers: bytes) -> bytes:
        raw = {name.replace("_", "-").encode(): value for name, value in headers.items()}
        return await read_body(self.receive, raw, limit=LIMIT, timeout_s=TIMEOUT_S)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "messages",
    [
        [piece(b"hello", more=False)],
        [piece(b"he"), piece(b""), piece(b"llo"), piece(b"", more=False)],
        [piece(b""), piece(b"hello", more=False)],
        [{"type": "http.request", "body": b"hello"}],
        [{"type": "http.request", "more_body": True}, piece(b"hello", more=False)],
    ],
)
async def test_a_body_is_put_together_from_its_pieces(messages: list[dict[str, Any]]) -> None:
    assert await Client(*messages).read() == b"hello"


@pytest.mark.anyio
async def test_a_request_without_a_body_is_empty() -> None:
    assert await Client({"type": "http.request"}).read() == b""


@pytest.mark.anyio
@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1])
async def test_the_limit_is_exact_in_one_piece_or_many(size: int) -> None:
    whole = Client(piece(b"x" * size, more=False))
    pieces = Client(*(piece(b"x") for _ in range(size)), piece(b"", more=False))
    for client in (whole, pieces):
        if size <= LIMIT:
            assert len(await client.read()) == size
        else:
            with pytest.raises(PayloadTooLarge, match="max_body_mb"):
                await client.read()


@pytest.mark.anyio
async def test_a_body_a_little_too_large_is_read_to_its_end_so_that_the_client_hears_why() -> None:
    client = Client(*(piece(b"x" * LIMIT) for _ in range(3)), piece(b"x", more=False))
    with pytest.raises(PayloadTooLarge) as caught:
        await client.read()
    assert client.taken == 4
    assert CLOSE not in caught.value.headers


@pytest.mark.anyio
@pytest.mark.parametrize("announced", [b"", b"1000000"])
async def test_a_body_without_measure_is_cut_off(announced: bytes) -> None:
    client = Client(*(piece(b"x" * LIMIT) for _ in range(100)))
    with pytest.raises(PayloadTooLarge) as caught:
        await client.read(content_length=announced)
    assert client.taken < 10
    assert CLOSE in caught.value.headers


@pytest.mark.anyio
async def test_a_body_that_stops_half_way_is_a_timeout() -> None:
    started = asyncio.get_running_loop().time()
    with pytest.raises(RequestTimeout, match="30 s") as caught:
        await Client(piece(b"half")).read()
    assert CLOSE in caught.value.headers
    assert asyncio.get_running_loop().time() - started == pytest.approx(TIMEOUT_S, abs=1)


@pytest.mark.anyio
async def test_a_too_large_body_that_stops_half_way_does_not_hang() -> None:
    with pytest.raises(ApiError):
        await Client(piece(b"x" * (LIMIT + 1))).read()


@pytest.mark.anyio
@pytest.mark.parametrize("messages", [[DISCONNECT], [piece(b"half"), DISCONNECT], [piece(b"x" * 2000), DISCONNECT]])
async def test_a_client_that_goes_away_is_answered_by_nobody(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(ClientGone):
        await Client(*messages).read()
