"""A client's request, read once at the door: of its content only what routing needs."""

from collections.abc import Mapping
from typing import Final

import msgspec

from utils.errors import BadRequest, PayloadTooLarge, RequestTimeout, UnsupportedMediaType

Headers = Mapping[bytes, bytes]

SESSION_HEADER: Final = b"x-ichat-session"
NO_SESSION: Final = (b"", b"null", b'""')
MAX_N: Final = 128
"""As OpenAI has it: an engine would take thousands, and answer nobody else meanwhile."""
NO_MODEL = "model is missing: name one of the models that GET /v1/models lists"


class RequestFields(msgspec.Struct, gc=False):
    """What the gateway reads of a body; the engine reads the rest."""

    model: str | msgspec.UnsetType = msgspec.UNSET
    stream: bool | None = None
    n: int | float | None = None
    max_tokens: msgspec.Raw = msgspec.Raw()
    max_completion_tokens: msgspec.Raw = msgspec.Raw()
    max_output_tokens: msgspec.Raw = msgspec.Raw()
    user: msgspec.Raw = msgspec.Raw()  # as written: what it means is the engine's matter
    prompt_cache_key: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()


NO_FIELDS: Final = RequestFields()
_decoder = msgspec.json.Decoder(RequestFields)


def parse_fields(body: bytes) -> RequestFields:
    """Raises BadRequest for what is no JSON object, has no usable ``model``, or asks for too many answers."""
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
    if fields.n is not None and fields.n > MAX_N:
        raise BadRequest(f"n={fields.n} is too many: ask for at most {MAX_N} answers at once", param="n")
    return fields


def session_of(headers: Headers, fields: RequestFields) -> bytes:
    """What the requests of one session have in common; b"" where they say nothing of it."""
    for key in (headers.get(SESSION_HEADER, b""), bytes(fields.user), bytes(fields.prompt_cache_key)):
        if key not in NO_SESSION:
            return key
    return b""


def new_tokens_of(fields: RequestFields) -> int:
    """The most that the model may say, all answers together; 0 where the request does not say."""
    for limit in (fields.max_completion_tokens, fields.max_tokens, fields.max_output_tokens):
        text = bytes(limit)
        if text.isdigit():
            return int(text[:10]) * max(1, int(fields.n or 1))
    return 0


def content_of(fields: RequestFields) -> bytes:
    """What the engine makes its prompt of, as written, in the order in which chat templates put it."""
    return b"".join((fields.tools, fields.system, fields.instructions, fields.messages, fields.prompt, fields.input))


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


def body_too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body is larger than {limit / 1024 / 1024:g} MB: send less, or raise server_settings.max_body_mb"
    )


def body_timeout(seconds: float) -> RequestTimeout:
    return RequestTimeout(f"the rest of the body did not arrive within {seconds:g} s: check its length")
