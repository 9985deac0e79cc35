"""Every error of the control plane in OpenAI's envelope, and the headers that every answer has."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from relay.headers import request_id
from relay.routes import ROUTES
from utils.errors import BY_STATUS, ApiError, BadRequest, InternalError, MethodNotAllowed
from utils.logger import EventLogger

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
    """The first wrong field, named; the values are not repeated, for they may be secrets."""
    problems = error.errors()
    first = problems[0]
    field = ".".join(str(part) for part in first["loc"] if part != "body")
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "json_invalid":
        return BadRequest("the body is not valid JSON")
    if not field:
        return BadRequest("the body must be a JSON object, sent as application/json")
    return BadRequest(f"{field}: {first['msg']}{more}", param=field)


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
