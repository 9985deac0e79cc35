"""An engine's errors in OpenAI's envelope, whatever shape the engine gives them."""

import json
from http import HTTPStatus
from typing import Any

from backends.base import ASGIApp
from utils.errors import BY_STATUS, ApiError, BadRequest, InternalError


class EngineErrors:
    """Raw ASGI around an engine's app. Answers below 400, and errors that are enveloped already, pass as they are."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start: Any = None
        pieces: list[bytes] = []

        async def send_on(message: Any) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and message["status"] >= HTTPStatus.BAD_REQUEST:
                start = message
            elif start is None:
                await send(message)
            else:
                pieces.append(message.get("body", b""))
                if not message.get("more_body"):
                    await send_error(send, start, b"".join(pieces))

        await self._app(scope, receive, send_on)


async def send_error(send: Any, start: Any, body: bytes) -> None:
    status, body = enveloped(start["status"], body)
    kept = [each for each in start["headers"] if each[0].lower() not in (b"content-length", b"content-type")]
    headers = [*kept, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({**start, "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def enveloped(status: int, body: bytes) -> tuple[int, bytes]:
    """(status, body) as OpenAI's clients know them. A 422 is FastAPI's, for what OpenAI calls a 400."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        told = None
    if isinstance(told, dict) and isinstance(told.get("error"), dict) and status != HTTPStatus.UNPROCESSABLE_ENTITY:
        return status, body
    if status == HTTPStatus.UNPROCESSABLE_ENTITY:
        status = HTTPStatus.BAD_REQUEST
    kind = BY_STATUS.get(status, InternalError if status >= HTTPStatus.INTERNAL_SERVER_ERROR else BadRequest)
    error: ApiError = kind(message_of(told) or f"the engine answered HTTP {status}: its log says why")
    return int(status), error.body()


def message_of(told: Any) -> str:
    """SGLang says ``message``, FastAPI ``detail``: a text, or a list of what is wrong where."""
    if not isinstance(told, dict):
        return ""
    inner = told.get("error")
    found = inner.get("message") if isinstance(inner, dict) else inner or told.get("message") or told.get("detail")
    if isinstance(found, list):
        return "; ".join(map(complaint_of, found))
    return found if isinstance(found, str) else ""


def complaint_of(problem: Any) -> str:
    if not isinstance(problem, dict):
        return str(problem)
    place = ".".join(str(part) for part in problem.get("loc", ()) if part != "body")
    return f"{place}: {problem.get('msg', '')}" if place else str(problem.get("msg", ""))
