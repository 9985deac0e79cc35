"""An engine's errors, as OpenAI's clients know them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine_errors import EngineErrors, enveloped

ENVELOPED = b'{"error": {"message": "too long", "type": "BadRequestError", "param": null, "code": 400}}'


REPORT = "1 validation error:\n {'type': 'missing', 'loc': %s, 'msg': 'Field required'}\n\n File /srv/x.py, line 1"
FASTAPIS = json.dumps({"message": REPORT % "('body', 'messages')"}).encode()
VLLMS = json.dumps({"error": {"message": REPORT % "'body.messages'"}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "told", "words"),
    [
        (400, b'{"object": "error", "message": "temperature is below 0", "type": "BadRequest", "code": 400}', 400,
         "temperature is below 0"),
        (422, b'{"detail": [{"loc": ["body", "messages", 0], "msg": "Field required"}]}', 400,
         "messages.0: Field required"),
        (422, b'{"error": {"message": "max_tokens"}}', 400, "max_tokens"),
        (404, b'{"detail": "Not Found"}', 404, "no such route"),
        (422, b'{"detail": [{"loc": null, "msg": "odd"}]}', 400, "odd"),
        (400, FASTAPIS, 400, "messages: Field required"),
        (400, VLLMS, 400, "messages: Field required"),
        (401, b'{"error": "Unauthorized"}', 401, "Unauthorized"),
        (500, b"Internal Server Error", 500, "the engine answered HTTP 500"),
        (503, b"", 503, "the engine answered HTTP 503"),
        (400, b"[1]", 400, "the engine answered HTTP 400"),
        (400, b'{"detail": ["odd"]}', 400, "odd"),
    ],
)  # fmt: skip
def test_each_shape_is_enveloped(status: int, body: bytes, told: int, words: str) -> None:
    found, answer = enveloped(status, body)
    assert found == told
    error = json.loads(answer)["error"]
    assert words in error["message"]
    assert "/srv" not in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_what_is_enveloped_already_is_left_alone() -> None:
    assert enveloped(400, ENVELOPED) == (400, ENVELOPED)


@given(st.integers(400, 599), st.binary(max_size=50) | st.recursive(
    st.none() | st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["error", "detail", "message", "loc", "msg"]), inner)
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_body_becomes_an_envelope(status: int, body: bytes) -> None:
    found, answer = enveloped(status, body)
    assert found >= 400
    assert isinstance(json.loads(answer)["error"], dict)


@pytest.mark.anyio
@pytest.mark.parametrize(("status", "sent"), [(200, b"streamed"), (400, ENVELOPED)])
async def test_the_rest_passes_as_it_is(status: int, sent: bytes) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"retry-after", b"2")]})
        await send({"type": "http.response.body", "body": sent[:3], "more_body": True})
        await send({"type": "http.response.body", "body": sent[3:]})

    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    await EngineErrors(app)({"type": "http"}, None, send)
    assert messages[0]["status"] == status
    assert (b"retry-after", b"2") in messages[0]["headers"]
    assert b"".join(message["body"] for message in messages[1:]) == sent
