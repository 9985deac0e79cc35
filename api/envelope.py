"""Every error of the control plane in OpenAI's envelope, and the headers that every answer has."""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from relay.headers import request_id
from relay.routes import ROUTES
from utils.errors import BY_STATUS, ApiError, BadRequest, InternalError, MethodNotAllowed
from utils.logger import EventLogger

MAX_TOLD: Final = 10
"""Wrong fields that one answer names."""

logger = EventLogger("api")


def answer_error(error: ApiError) -> Response:
    response = Response(error.body(), status_code=error.status, media_type="application/json")
    response.raw_headers.extend(error.headers)
    return response


def install_error_envelope(app: FastAPI) -> None:
    """Whatever goes wrong below ``app`` is answered as an ApiError."""

    async def on_api_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return answer_error(error)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = BY_STATUS.get(error.status_code, InternalError)
        message = str(error.detail)
        if error.status_code == 404 and request.url.path in ROUTES:
            kind = MethodNotAllowed
            message = f"{request.method} is not allowed on {request.url.path}: use POST"
        elif error.status_code == 404:
            message = f"there is no route {request.method} {request.url.path[:200]}: GET /docs lists them"
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            message = f"{request.method} is not allowed on {request.url.path[:200]}: use {allowed}"
        return answer_error(kind(message))

    async def on_validation_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return answer_error(describe_validation(error))

    async def on_crash(request: Request, error: Exception) -> Response:
        logger.error("route_crashed", path=request.url.path, exc_info=error)
        return answer_error(InternalError("the gateway failed on this request: see its log"))

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(Exception, on_crash)


def describe_validation(error: RequestValidationError) -> BadRequest:
    """The wrong fields, named; the values are not repeated, for they may be secrets."""
    problems = error.errors()
    if problems[0]["type"] == "json_invalid":
        return BadRequest("the body is not valid JSON")
    first = field_of(problems[0])
    if not first:
        return BadRequest("the body must be a JSON object, sent as application/json")
    told = [f"{field_of(problem) or 'the body'}: {problem['msg']}" for problem in problems[:MAX_TOLD]]
    more = f" ({len(problems) - MAX_TOLD} more)" if len(problems) > MAX_TOLD else ""
    return BadRequest("; ".join(told) + more, param=first)


def field_of(problem: Mapping[str, Any]) -> str:
    """Where a problem of pydantic's is, as in ``gpu_memory.0.total``; "" for the body as a whole."""
    return ".".join(str(part) for part in problem["loc"] if part != "body")


class RequestIdHeader:
    """ASGI middleware: ``x-request-id`` on every answer, the client's own where it sent one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        header = (b"x-request-id", request_id(dict(scope["headers"])))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), header]
            await send(message)

        await self._app(scope, receive, send_with_id)
