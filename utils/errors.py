"""The errors that a user of iChat meets, and the one shape in which clients see them.

::

    IChatError
    ├── ConfigError            settings or arguments are wrong; a program ends with code 2
    └── ApiError               becomes an HTTP answer with OpenAI's error envelope
        ├── BadRequest             400  invalid_request_error
        ├── Unauthorized           401  authentication_error
        ├── Forbidden              403  permission_error
        ├── NotFound               404  not_found_error
        │   └── ModelNotFound          code: model_not_found
        ├── MethodNotAllowed       405  invalid_request_error
        ├── RequestTimeout         408  invalid_request_error
        ├── Conflict               409  conflict_error
        ├── PayloadTooLarge        413  invalid_request_error
        ├── UnsupportedMediaType   415  invalid_request_error
        ├── TooManyRequests        429  rate_limit_error, with Retry-After; code: queue_full, rate_limit_exceeded
        ├── InternalError          500  server_error
        ├── WorkerBroke            502  server_error
        ├── NoReplicaReady         503  server_error, with Retry-After
        ├── QueueTimeout           503  server_error, with Retry-After; code: queue_timeout
        └── WorkerTimeout          504  server_error
"""

import json
from collections.abc import Sequence
from typing import Any, ClassVar, Final


class IChatError(Exception):
    """The root of all errors that iChat raises on purpose. ``str(error)`` says what to do."""


class ConfigError(IChatError):
    """Settings or arguments are wrong: the message names the key and says what to do."""

    EXIT_CODE: ClassVar[int] = 2


class ApiError(IChatError):
    """An error that is answered to an HTTP client."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers

    def envelope(self) -> dict[str, Any]:
        """OpenAI's error object (https://platform.openai.com/docs/guides/error-codes)."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        return json.dumps(self.envelope(), ensure_ascii=False).encode()


class BadRequest(ApiError):
    status = 400
    type = "invalid_request_error"


class Unauthorized(ApiError):
    status = 401
    type = "authentication_error"


class Forbidden(ApiError):
    status = 403
    type = "permission_error"


class NotFound(ApiError):
    status = 404
    type = "not_found_error"


MAX_NAMED: Final = 20
"""Of thousands of models, those that an error names: whoever asks for a wrong one must not get a megabyte."""


class ModelNotFound(NotFound):
    def __init__(self, model: str, models: Sequence[str]) -> None:
        known = f"The models here are: {', '.join(models[:MAX_NAMED])}" if models else "No model is registered here yet"
        more = len(models) - MAX_NAMED
        known += f", and {more} more: GET /v1/models lists them." if more > 0 else "."
        super().__init__(f"The model {model[:200]!r} does not exist. {known}", code="model_not_found", param="model")


class MethodNotAllowed(ApiError):
    status = 405
    type = "invalid_request_error"


class RequestTimeout(ApiError):
    status = 408
    type = "invalid_request_error"


class Conflict(ApiError):
    status = 409
    type = "conflict_error"


class PayloadTooLarge(ApiError):
    status = 413
    type = "invalid_request_error"


class UnsupportedMediaType(ApiError):
    status = 415
    type = "invalid_request_error"


class TooManyRequests(ApiError):
    """``retry_after_s`` None: the same request will never do, so that a client's library is told not to try again."""

    status = 429
    type = "rate_limit_error"

    def __init__(
        self, message: str, *, code: str, retry_after_s: int | None, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        # x-should-retry is what the openai and anthropic libraries obey before all else.
        when = retry_after(retry_after_s) if retry_after_s is not None else (b"x-should-retry", b"false")
        super().__init__(message, code=code, headers=(when, *headers))


class InternalError(ApiError):
    status = 500


class WorkerBroke(ApiError):
    status = 502


class NoReplicaReady(ApiError):
    status = 503

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message, code="no_replica_ready", headers=(retry_after(retry_after_s),))


class QueueTimeout(ApiError):
    """The request has waited, or would wait, longer than its client wants to."""

    status = 503

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message, code="queue_timeout", headers=(retry_after(retry_after_s),))


class WorkerTimeout(ApiError):
    status = 504


def retry_after(seconds: int) -> tuple[bytes, bytes]:
    """The header that says when to come again (RFC 9110, 10.2.3)."""
    return (b"retry-after", b"%d" % seconds)


BY_STATUS: dict[int, type[ApiError]] = {
    kind.status: kind
    for kind in (BadRequest, Unauthorized, Forbidden, NotFound, MethodNotAllowed, PayloadTooLarge, InternalError)
}
"""The error for a bare status, as frameworks raise it."""
