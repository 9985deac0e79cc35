"""LiteLLM's exceptions as ours: pure, by what they carry, so that LiteLLM need not be imported for it.

https://docs.litellm.ai/docs/exception_mapping lists them. The status of the provider is kept where it is the client's
matter; what is the operator's (a wrong key, no credit) is a 502. Every message names the hop.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from utils.errors import (
    ApiError,
    BadRequest,
    NoReplicaReady,
    NotFound,
    PayloadTooLarge,
    TooManyRequests,
    WorkerBroke,
    WorkerTimeout,
)

MAX_TEXT: Final = 1000
RETRY_AFTER_S: Final = 2
OPERATORS: Final = frozenset({401, 402, 403})
TOO_LONG: Final = re.compile(
    r"context_length_exceeded|context[ _](?:length|window|limit|size)|maximum (?:input|model) length|"
    r"prompt is too long|too many (?:input )?tokens|exceeds? the maximum number of tokens|input is too long",
    re.IGNORECASE,
)
"""How engines and providers say that a prompt is longer than the model takes."""
KEY_LIKE: Final = re.compile(r"\b(?:sk|pk|rk|gsk|xai|AIza|Bearer|ya29)[-_. ][\w.*-]{6,}", re.IGNORECASE)
NOISE: Final = re.compile(r"^(?:litellm\.)?\w*(?:Error|Exception|Timeout)(?::| -)\s*")
"""What LiteLLM puts before a provider's words, several times over."""
OBJECT: Final = re.compile(r" ?(?:\w+:)?<[\w.]+ object at 0x\w+>")
AFTERWORD: Final = re.compile(r"\n*LiteLLM: model group .*| LiteLLM Retried: .*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Hop:
    """Who was asked, in words for clients, and what must not be said of it."""

    name: str
    secrets: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"Hop({self.name!r})"


def is_too_long(text: str) -> bool:
    """Whether an error's words say that the prompt is longer than the model takes."""
    return TOO_LONG.search(text) is not None


def to_api_error(error: BaseException, hop: Hop) -> ApiError:
    """The answer to the client. It holds no secret, and neither does its text in a log."""
    error = getattr(error, "original_exception", None) or error  # what a stream broke with
    cooldown = getattr(error, "cooldown_time", None)
    if isinstance(cooldown, int | float):
        text = f"{hop.name}: all its deployments failed lately and are left alone for a moment; try again"
        return NoReplicaReady(text, retry_after_s=max(1, math.ceil(cooldown)))
    status = getattr(error, "status_code", None)
    status = status if isinstance(status, int) else 500
    text = redact(words_of(error), hop.secrets)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if status in OPERATORS:  # its words may hold a part of the key
        return WorkerBroke(
            f"{hop.name} does not let the gateway in (status {status}): its operator must look at the api_key",
            code="provider_refused_gateway",
        )
    if "ContextWindowExceededError" in kinds or (status in (400, 413, 422) and is_too_long(text)):
        return BadRequest(f"{hop.name}: {text}", code="context_length_exceeded", param="messages")
    if "ContentPolicyViolationError" in kinds:
        return BadRequest(f"{hop.name}: {text}", code="content_policy_violation")
    if "APITimeoutError" in kinds or status in (408, 504):
        return WorkerTimeout(f"{hop.name} did not answer in time", code="provider_timeout")
    make = BY_STATUS.get(status)
    return make(f"{hop.name}: {text}", error) if make else broke(f"{hop.name}: {text}", error)


def broke(text: str, error: BaseException) -> ApiError:
    return WorkerBroke(f"{text}; try again", code="provider_broke")


def bad_request(text: str, error: BaseException) -> ApiError:
    body = getattr(error, "body", None)
    body = body if isinstance(body, dict) else {}
    unsupported = "unsupported_parameter" if type(error).__name__ == "UnsupportedParamsError" else None
    code, param = body.get("code") or unsupported, body.get("param")
    return BadRequest(
        text, code=code if isinstance(code, str) else None, param=param if isinstance(param, str) else None
    )


BY_STATUS: Final[Mapping[int, Callable[[str, BaseException], ApiError]]] = {
    400: bad_request,
    404: lambda text, _: NotFound(text, code="provider_not_found", param="model"),
    413: lambda text, _: PayloadTooLarge(text),
    422: bad_request,
    429: lambda text, error: TooManyRequests(text, code="provider_rate_limit", retry_after_s=retry_after_s(error)),
    503: lambda text, error: NoReplicaReady(text, retry_after_s=retry_after_s(error)),
    529: lambda text, error: NoReplicaReady(text, retry_after_s=retry_after_s(error)),
}


def retry_after_s(error: BaseException) -> int:
    """The provider's ``Retry-After`` in seconds, where it has one of a sane length."""
    own: Any = getattr(error, "litellm_response_headers", None)
    headers: Any = own or getattr(getattr(error, "response", None), "headers", None) or {}
    text = str(headers.get("retry-after", ""))
    return int(text) if text.isascii() and text.isdigit() and 0 < int(text) < 86400 else RETRY_AFTER_S


def words_of(error: BaseException) -> str:
    """The provider's own words, without LiteLLM's round them."""
    body = getattr(error, "body", None)
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return str(body["message"])[:MAX_TEXT]
    text = AFTERWORD.sub("", str(getattr(error, "message", "") or error)).strip()
    while (shorter := NOISE.sub("", text)) != text:
        text = shorter
    return (message_in(text) or OBJECT.sub("", text) or type(error).__name__)[:MAX_TEXT]


def message_in(text: str) -> str:
    """The message of OpenAI's or Anthropic's error object, if the text is one; else ""."""
    try:
        found: Any = json.loads(text[text.index("{") :])
    except (ValueError, RecursionError):
        return ""
    inner = found.get("error", found) if isinstance(found, dict) else None
    message = inner.get("message") if isinstance(inner, dict) else inner
    return message if isinstance(message, str) else ""


def redact(text: str, secrets: Iterable[str]) -> str:
    """The text without these, and without what looks like a key."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return KEY_LIKE.sub("***", text)
