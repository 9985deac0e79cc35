"""A client's request, read once at the door: the body whole, and of its content only what routing needs."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from typing import Any, Final

import msgspec

from utils.errors import BadRequest, PayloadTooLarge, RequestTimeout, UnsupportedMediaType

Scope = MutableMapping[str, Any]
Receive = Callable[[], Coroutine[Any, Any, MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Mapping[bytes, bytes]

DISCARD_FACTOR: Final = 4
"""A body over the limit is read and thrown away up to this many times the limit, so that the client, which sends
before it reads, gets to see the error instead of a reset connection."""

NO_MODEL = "model is missing: name one of the models that GET /v1/models lists"


class ClientGone(Exception):
    """The client closed its connection: there is nobody to answer."""


class RequestFields(msgspec.Struct):
    """What the gateway reads of a body; the engine reads the rest."""

    model: str | msgspec.UnsetType = msgspec.UNSET
    stream: bool | None = None


_decoder = msgspec.json.Decoder(RequestFields)


def parse_fields(body: bytes) -> RequestFields:
    """Raises BadRequest for what is no JSON object, or has no usable ``model``."""
    try:
        fields = _decoder.decode(body)
    except msgspec.ValidationError as error:
        param = _param_of(str(error))
        what = "the body has a field of the wrong type" if param else "the body must be a JSON object"
        raise BadRequest(f"{what}: {error}", param=param) from error
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from error
    if not isinstance(fields.model, str) or not fields.model:
        raise BadRequest(NO_MODEL, param="model")
    return fields


def _param_of(message: str) -> str | None:
    # msgspec ends its messages with "- at `$.field`".
    _, found, path = message.rpartition("`$.")
    return path.rstrip("`") if found else None


def check_content_type(headers: Headers) -> None:
    """Raises UnsupportedMediaType for anything but JSON, with or without parameters."""
    value = headers.get(b"content-type", b"")
    if value.split(b";", 1)[0].strip().lower() != b"application/json":
        named = value.decode("latin-1")[:100] or "none"
        raise UnsupportedMediaType(f"the content type is {named}: send the body as application/json")


async def read_body(receive: Receive, headers: Headers, *, limit: int, timeout_s: float) -> bytes:
    """The whole body, at most ``limit`` bytes.

    Raises PayloadTooLarge, RequestTimeout when a piece takes longer than ``timeout_s``, and ClientGone.
    """
    message = await _next(receive, timeout_s)
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        if len(body) > limit:
            raise _too_large(limit)
        return body
    if int(headers.get(b"content-length", b"0") or 0) > limit:
        await _discard(receive, len(body), limit, timeout_s)
    pieces = [body]
    size = len(body)
    while message.get("more_body"):
        message = await _next(receive, timeout_s)
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > limit:
            pieces.clear()
            await _discard(receive, size, limit, timeout_s)
    return b"".join(pieces)


async def _next(receive: Receive, timeout_s: float) -> MutableMapping[str, Any]:
    try:
        async with asyncio.timeout(timeout_s):
            message = await receive()
    except TimeoutError:
        raise RequestTimeout(
            f"the rest of the body did not arrive within {timeout_s:g} s: check its length", headers=CLOSE
        ) from None
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message


async def _discard(receive: Receive, size: int, limit: int, timeout_s: float) -> None:
    """Reads on without keeping anything, then raises PayloadTooLarge."""
    more = True
    while more and size <= limit * DISCARD_FACTOR:
        message = await _next(receive, timeout_s)
        size += len(message.get("body", b""))
        more = bool(message.get("more_body"))
    raise _too_large(limit, () if not more else CLOSE)


CLOSE: Final = ((b"connection", b"close"),)


def _too_large(limit: int, headers: tuple[tuple[bytes, bytes], ...] = ()) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body is larger than {limit / 1024 / 1024:g} MB: send less, or raise server_settings.max_body_mb",
        headers=headers,
    )
