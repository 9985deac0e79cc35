"""The engine's app behind the check: what reaches it, and what does not."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import JSONResponse

from tests.doubles import PATIENT
from worker.media import MediaPolicy
from worker.media_guard import MediaGuard

MAX_BODY = 1000
BAD = json.dumps({"image_url": "http://10.0.0.1/"}).encode()
GOOD = json.dumps({"image_url": "data:image/png;base64,AA"}).encode()


class Engine:
    """An app that reads its request and then waits for what comes after it."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        while True:
            message = await receive()
            self.messages.append(message)
            if message["type"] == "http.disconnect":
                return
            if not message["more_body"] and scope["path"] != "/wait":
                await JSONResponse({})(scope, receive, send)
                return

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


class Client:
    """A connection that has sent these pieces of a request, and was then closed."""

    def __init__(self, *pieces: bytes, is_whole: bool = True) -> None:
        last = len(pieces) - 1 if is_whole else -1
        self._messages = [
            {"type": "http.request", "body": piece, "more_body": i != last} for i, piece in enumerate(pieces)
        ]
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        return self._messages.pop(0) if self._messages else {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def unread(self) -> int:
        return len(self._messages)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def message(self) -> str:
        return str(json.loads(self.sent[1]["body"])["error"]["message"])


async def ask(client: Client, path: str = "/v1/chat/completions", method: str = "POST", **headers: str) -> Engine:
    engine = Engine()
    guard = MediaGuard(engine, MediaPolicy(), MAX_BODY)
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await guard({"type": "http", "method": method, "path": path, "headers": pairs}, client.receive, client.send)
    return engine


NO_MEDIA = st.binary(max_size=50).filter(lambda piece: not {0, *b'"\\'} & set(piece))


@PATIENT
@given(st.lists(NO_MEDIA, min_size=1, max_size=5))
def test_the_engine_gets_the_very_bytes(pieces: list[bytes]) -> None:
    assert asyncio.run(ask(Client(*pieces))).body == b"".join(pieces)


@pytest.mark.anyio
async def test_good_media_reach_the_engine_as_they_were_written() -> None:
    body = b' {"image_url" :\n"data:image/png;base64,AA", "image_url": "", "\\u00e9": 1.50}'
    client = Client(body[:9], body[9:40], body[40:])
    assert (await ask(client)).body == body
    assert client.status == 200


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate", "/any/other", "/v1/audio/transcriptions"])
async def test_bad_media_never_reach_the_engine_on_any_route(method: str, path: str) -> None:
    client = Client(BAD[:8], BAD[8:])
    assert (await ask(client, path, method)).scopes == []
    assert client.status == 400
    error = json.loads(client.sent[1]["body"])["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "image_url")


@pytest.mark.anyio
async def test_after_the_body_the_engine_hears_that_the_client_has_gone() -> None:
    engine = await ask(Client(GOOD), "/wait")
    assert [message["type"] for message in engine.messages] == ["http.request", "http.disconnect"]
    assert engine.messages[0]["more_body"] is False


@pytest.mark.anyio
async def test_a_client_that_goes_within_its_body_troubles_no_engine() -> None:
    client = Client(GOOD, is_whole=False)
    assert (await ask(client)).scopes == []
    assert client.sent == []


@pytest.mark.anyio
async def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    client = Client(b"x" * (MAX_BODY + 1))
    assert (await ask(client, content_length=str(MAX_BODY + 1))).scopes == []
    assert client.status == 413
    assert "--max-body-mb" in client.message
    assert client.unread == 1


@pytest.mark.anyio
async def test_a_body_of_unknown_length_is_read_up_to_the_limit() -> None:
    client = Client(*[b"x" * 300] * 9)
    assert (await ask(client)).scopes == []
    assert client.status == 413
    assert client.unread == 5
    assert (await ask(Client(b"x" * MAX_BODY))).body == b"x" * MAX_BODY


@pytest.mark.anyio
async def test_requests_without_a_body_pass_through() -> None:
    client = Client()
    engine = await ask(client, "/v1/models", "GET")
    assert len(engine.scopes) == 1
    assert engine.messages == [{"type": "http.disconnect"}]


@pytest.mark.anyio
async def test_uploads_of_audio_pass_through_in_pieces() -> None:
    pieces = [b'--b\r\n"image_url"\r\n', b"\0", BAD]
    engine = await ask(Client(*pieces), "/v1/audio/transcriptions", content_type="multipart/form-data; boundary=b")
    assert [message["body"] for message in engine.messages] == pieces


@pytest.mark.anyio
async def test_a_content_type_alone_hides_nothing() -> None:
    client = Client(BAD)
    await ask(client, "/invocations", content_type="multipart/form-data; boundary=b")
    assert client.status == 400
    client = Client(BAD)
    await ask(client, "/v1/audio/transcriptions", content_type="application/json")
    assert client.status == 400


@pytest.mark.anyio
async def test_an_answer_is_streamed_as_the_engine_makes_it() -> None:
    async def stream(scope: Any, receive: Any, send: Any) -> None:
        assert await Request(scope, receive).body() == GOOD
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in (b"a", b"b"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    client = Client(GOOD)
    guard = MediaGuard(stream, MediaPolicy(), MAX_BODY)
    await guard({"type": "http", "method": "POST", "path": "/", "headers": []}, client.receive, client.send)
    assert [message.get("body") for message in client.sent[1:]] == [b"a", b"b", None]


@pytest.mark.anyio
async def test_other_scopes_are_the_engines() -> None:
    engine = Engine()
    client = Client()
    await MediaGuard(engine, MediaPolicy(), MAX_BODY)({"type": "lifespan"}, client.receive, client.send)
    assert engine.scopes == [{"type": "lifespan"}]


@pytest.mark.anyio
async def test_an_upload_that_does_not_tell_its_length_is_cut_off() -> None:
    client = Client(*[b"x" * 400] * 5)
    engine = await ask(client, "/v1/audio/transcriptions", content_type="multipart/form-data; boundary=x")
    assert engine.messages[-1]["type"] == "http.disconnect"
    assert client.status == 413
    assert "larger than" in client.message


@pytest.mark.anyio
async def test_a_model_that_takes_text_only_says_so() -> None:
    client = Client(BAD)
    guard = MediaGuard(Engine(), MediaPolicy(), MAX_BODY, lambda: ("text",))
    await guard({"type": "http", "method": "POST", "path": "/v1/x", "headers": []}, client.receive, client.send)
    assert client.message == "image_url: this model takes text only"


@pytest.mark.anyio
async def test_a_large_body_is_looked_through_all_the_same() -> None:
    large = json.dumps({"prompt": "x" * 300_000, "image_url": "http://10.0.0.1/"}).encode()
    client = Client(large)
    guard = MediaGuard(Engine(), MediaPolicy(), 1_000_000)
    await guard({"type": "http", "method": "POST", "path": "/v1/x", "headers": []}, client.receive, client.send)
    assert client.status == 400
