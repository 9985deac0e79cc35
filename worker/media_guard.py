"""The engine's app behind a check of every request's body: for media (worker/media.py), and for its size."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from starlette.responses import JSONResponse

from backends.base import ASGIApp
from utils.errors import ApiError, PayloadTooLarge
from worker.media import MediaPolicy, check_bytes

UPLOADS: Final = "/v1/audio/"
BODILESS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

Receive = Callable[[], Awaitable[Any]]


class MediaGuard:
    """Raw ASGI around an engine's app. Bodies are read up to ``max_body`` bytes and passed on as they came.

    Uploads of audio pass through in pieces: their bytes are the media itself.
    """

    def __init__(self, app: ASGIApp, policy: MediaPolicy, max_body: int) -> None:
        self._app = app
        self._policy = policy
        self._max_body = max_body

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] in BODILESS:
            await self._app(scope, receive, send)
            return
        try:
            receive = await self._admit(scope, receive)
        except ApiError as error:
            await JSONResponse(error.envelope(), error.status)(scope, receive, send)
            return
        if receive is not None:
            await self._app(scope, receive, send)

    async def _admit(self, scope: Any, receive: Any) -> Receive | None:
        """What the engine is to read from; None when the client has gone. Raises ApiError."""
        headers = scope["headers"]
        if any(name == b"content-length" and int(value) > self._max_body for name, value in headers):
            raise body_too_large(self._max_body)
        if scope["path"].startswith(UPLOADS) and is_form(headers):
            return receive  # type: ignore[no-any-return]
        body = await self._read(receive)
        if body is None:
            return None
        check_bytes(body, self._policy)
        return replay(body, receive)

    async def _read(self, receive: Any) -> bytes | None:
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            piece = message.get("body", b"")
            size += len(piece)
            if size > self._max_body:
                raise body_too_large(self._max_body)
            pieces.append(piece)
            if not message.get("more_body"):
                return b"".join(pieces)


def replay(body: bytes, receive: Receive) -> Receive:
    """The body at once, then whatever really comes: that the client has gone."""
    pending = [body]

    async def receive_again() -> Any:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return receive_again


def is_form(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    kinds = [value for name, value in headers if name == b"content-type"]
    return bool(kinds) and all(kind.lower().startswith(b"multipart/form-data") for kind in kinds)


def body_too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body is larger than {limit / 1024 / 1024:g} MB: send less, or start the worker with more --max-body-mb"
    )
