"""A request's span: what is kept of it when it ends, and what is told of that. Never prompts, answers or keys.

Names are those of OpenTelemetry's semantic conventions for HTTP servers and, where they have a word for it, for GenAI
(https://opentelemetry.io/docs/specs/semconv/); ours begin with ``ichat``.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from relay.usage import TAIL_BYTES, usage_of

if TYPE_CHECKING:
    from relay.flight import Flight
    from relay.tracing.context import Trace

Value = str | int | float | bool
OPERATIONS: Final[Mapping[str, str]] = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""``gen_ai.operation.name`` of the routes that have one."""
MAX_NAME: Final = 256
CLIENT_GONE: Final = "client_gone"


class Span(NamedTuple):
    """A request that has ended. Times are in seconds since ``trace.started_ns``; 0 or "": there was none."""

    trace: "Trace"
    route: str
    request_id: bytes
    model: str
    worker: str
    attempts: int
    queued_s: float
    first_byte_s: float
    duration_s: float
    asks_for_stream: bool
    is_event_stream: bool
    status: int
    """That the client has got."""
    error: str
    is_failure: bool
    """Of the server's: its client did nothing wrong."""
    tail: bytes
    """The end of the answer, for the usage in it."""


def span_of(trace: "Trace", flight: "Flight") -> Span:
    """What a flight leaves behind, without its request and its answer. Called once a request, so it is quick."""
    call, error = flight.call, flight.error
    status = flight.status if call.started else 0
    worst = max(status, error.status) if error is not None else status
    return Span(
        trace, call.route, flight.id, flight.model, flight.worker, flight.attempts, flight.queued_s,
        call.first_byte_at - flight.arrived if call.started else 0.0,
        time.perf_counter() - flight.arrived,
        flight.is_stream, flight.is_event_stream, status,
        error_type(flight, status), worst >= 500,
        b"".join(piece[-TAIL_BYTES:] for piece in flight.tail()) if status == 200 else b"",
    )  # fmt: skip


def error_type(flight: "Flight", status: int) -> str:
    """``error.type``: one of few words."""
    if flight.error is not None:
        return flight.error.code or flight.error.type
    if flight.call.disconnected:
        return CLIENT_GONE
    return str(status) if status >= 400 else ""


def attributes_of(span: Span) -> dict[str, Value]:
    """Only what is known."""
    usage = usage_of([span.tail])
    asked = span.trace.model or span.model
    has_answer = 0 < span.status < 400
    found: dict[str, Value | None] = {
        "http.request.method": "POST",
        "http.route": span.route,
        "url.path": span.route,
        "url.scheme": "http",
        "http.response.status_code": span.status or None,
        "error.type": span.error or None,
        "gen_ai.operation.name": OPERATIONS.get(span.route),
        "gen_ai.request.model": asked[:MAX_NAME] or None,
        "gen_ai.request.stream": span.asks_for_stream or None,
        "gen_ai.response.model": span.model[:MAX_NAME] if has_answer else None,
        "gen_ai.response.time_to_first_chunk": span.first_byte_s if has_answer and span.is_event_stream else None,
        "gen_ai.usage.input_tokens": usage.prompt,
        "gen_ai.usage.output_tokens": usage.completion,
        "gen_ai.usage.cache_read.input_tokens": usage.cached,
        "ichat.request_id": span.request_id.decode("latin-1"),
        "ichat.worker_id": span.worker or None,
        "ichat.attempts": span.attempts,
        "ichat.queue_ms": round(span.queued_s * 1000, 3),
        "ichat.first_byte_ms": round(span.first_byte_s * 1000, 3) if span.status else None,
    }
    return {name: value for name, value in found.items() if value is not None}
