"""The engine's app behind a check of every request's body: for media (worker/media.py), and for its size."""

import asyncio
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from starlette.responses import JSONResponse

from backends.base import ASGIApp
from utils.asgi import BodyTooLarge, Receive, read_body, replay
from utils.errors import ApiError, BadRequest, PayloadTooLarge
from worker.media import MediaPolicy, check_bytes

UPLOADS: Final = "/v1/audio/"
LARGE: Final = 256 * 1024
"""In bytes: a longer body is looked through in a thread, while others are answered."""
BODILESS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class MediaGuard:
    """Raw ASGI around an engine's app. Bodies are read up to ``max_body`` bytes and passed on as they came.

    Uploads of audio pass through in pieces: their bytes are the media itself. ``modalities``: what the model takes.
    """

    def __init__(
        self, app: ASGIApp, policy: MediaPolicy, max_body: int, modalities: Callable[[], Collection[str]] = tuple
    ) -> None:
        self._app = app
        self._modalities = modalities
        self._policy = policy
        self._max_body = max_body

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] in BODILESS:
            await self._app(scope, receive, send)
            return
        if scope["path"].startswith(UPLOADS) and is_form(scope["headers"]):
            await self._pass_upload(scope, receive, send)
            return
        try:
            receive = await self._admit(scope, receive)
        except ApiError as error:
            await JSONResponse(error.envelope(), error.status)(scope, receive, send)
            return
        if receive is not None:
            await self._app(scope, receive, send)

    async def _pass_upload(self, scope: Any, receive: Any, send: Any) -> None:
        """For the engine, a client that sends too much has gone; whoever waits for the answer is told why."""
        size, has_started = 0, False

        async def receive_counted() -> Any:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            return message if size <= self._max_body else {"type": "http.disconnect"}

        async def send_on(message: Any) -> None:
            nonlocal has_started
            if size <= self._max_body or has_started:
                has_started = True
                await send(message)

        try:
            await self._app(scope, receive_counted, send_on)
        except Exception:
            if size <= self._max_body:
                raise
        if size > self._max_body and not has_started:
            error = body_too_large(self._max_body)
            await JSONResponse(error.envelope(), error.status)(scope, receive, send)

    async def _admit(self, scope: Any, receive: Any) -> Receive | None:
        """What the engine is to read from; None when the client has gone. Raises ApiError."""
        headers = scope["headers"]
        if any(name == b"content-length" and int(value) > self._max_body for name, value in headers):
            raise body_too_large(self._max_body)
        try:
            body = await read_body(receive, self._max_body)
        except BodyTooLarge:
            raise body_too_large(self._max_body) from None
        if body is None:
            return None
        if len(body) > LARGE:
            await asyncio.to_thread(self._check, body)
        else:
            self._check(body)
        return replay(body, receive)

    def _check(self, body: bytes) -> None:
        """Raises BadRequest."""
        try:
            check_bytes(body, self._policy)
        except BadRequest as error:
            if error.param and tuple(self._modalities()) == ("text",):
                raise BadRequest(f"{error.param}: this model takes text only", param=error.param) from None
            raise


def is_form(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    kinds = [value for name, value in headers if name == b"content-type"]
    return bool(kinds) and all(kind.lower().startswith(b"multipart/form-data") for kind in kinds)


def body_too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body is larger than {limit / 1024 / 1024:g} MB: send less, or start the worker with more --max-body-mb"
    )
