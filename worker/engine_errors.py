"""An engine's errors in OpenAI's envelope, whatever shape the engine gives them."""

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from backends.base import ASGIApp
from utils.errors import BY_STATUS, ApiError, BadRequest, InternalError

EMPTY_WORDS: Final = frozenset({"Not Found", "Method Not Allowed", "Internal Server Error"})
"""What a framework says that has nothing to say."""
WORDS: Final[Mapping[int, str]] = {
    404: "the engine has no such route for this model",
    405: "the engine's route does not take this method",
}


VALIDATION: Final = re.compile(r"'loc': (\([^)]*\)|'[^']*').*?'msg': (['\"])(.*?)\2")
"""One complaint in the report of FastAPI's validator, as text."""
PARTS: Final = re.compile(r"[^\s(),.']+")


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
    message = message_of(told)
    is_enveloped = isinstance(told, dict) and isinstance(told.get("error"), dict)
    if is_enveloped and status != HTTPStatus.UNPROCESSABLE_ENTITY and not VALIDATION.search(message):
        return status, body
    if status == HTTPStatus.UNPROCESSABLE_ENTITY:
        status = HTTPStatus.BAD_REQUEST
    kind = BY_STATUS.get(status, InternalError if status >= HTTPStatus.INTERNAL_SERVER_ERROR else BadRequest)
    words = message or WORDS.get(status) or f"the engine answered HTTP {status}: its log says why"
    error: ApiError = kind(tidy(words))
    return int(status), error.body()


def tidy(words: str) -> str:
    """Of a validator's report, what is wrong where; not its Python, nor the files of the machine it ran on."""
    found = [f"{place_in(place)}: {what}" for place, _, what in VALIDATION.findall(words)]
    return "; ".join(found) or words


def place_in(location: str) -> str:
    """``('body', 'messages', 0)`` and ``'body.messages'`` as ``messages.0`` and ``messages``."""
    parts = [part for part in PARTS.findall(location) if part != "body"]
    return ".".join(parts) or "the body"


def message_of(told: Any) -> str:
    """SGLang says ``message``, FastAPI ``detail``: a text, or a list of what is wrong where."""
    if not isinstance(told, dict):
        return ""
    inner = told.get("error")
    found = inner.get("message") if isinstance(inner, dict) else inner or told.get("message") or told.get("detail")
    if isinstance(found, list):
        return "; ".join(map(complaint_of, found))
    return found if isinstance(found, str) and found not in EMPTY_WORDS else ""


def complaint_of(problem: Any) -> str:
    if not isinstance(problem, dict):
        return str(problem)
    parts = problem.get("loc")
    place = ".".join(str(part) for part in parts if part != "body") if isinstance(parts, list) else ""
    return f"{place}: {problem.get('msg', '')}" if place else str(problem.get("msg", ""))
