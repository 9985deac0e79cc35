"""A request's place in its client's trace, and its span for whoever collects spans.

The headers are those of W3C Trace Context (https://www.w3.org/TR/trace-context/).
"""

import random
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from relay.headers import Header
from relay.tracing.spans import Span, span_of
from utils.errors import ConfigError

if TYPE_CHECKING:
    from relay.flight import Flight

TRACEPARENT: Final = b"traceparent"
TRACESTATE: Final = b"tracestate"
FORM: Final = re.compile(rb"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[ -~]*)?")
SAMPLED: Final = 0x01
PASSED_ON: Final = 0x03
"""Flags that mean the same in the next hop: that the trace is recorded, and that its id is random."""


class Parent(NamedTuple):
    """A client's span."""

    trace_id: int
    span_id: int
    flags: int


def parse_traceparent(value: bytes) -> Parent | None:
    """None for what is none. Versions to come may say more behind the fields of version 00, which stay."""
    found = FORM.fullmatch(value)
    if found is None or (found[1] == b"00" and found[5] is not None):
        return None
    parent = Parent(int(found[2], 16), int(found[3], 16), int(found[4], 16))
    return parent if parent.trace_id and parent.span_id else None


class SpanSink(Protocol):
    """Where finished spans go. ``take`` returns at once, whatever becomes of the span."""

    def take(self, span: Span) -> None: ...

    async def close(self) -> None:
        """What was taken is sent, within a limit."""


class Trace:
    """One request's place in a trace: ids as numbers, ``parent_id`` 0 for the first of its trace."""

    __slots__ = ("_sink", "flags", "model", "parent_id", "span_id", "started_ns", "state", "trace_id")

    def __init__(
        self, sink: SpanSink, trace_id: int, span_id: int, parent_id: int = 0, flags: int = SAMPLED, state: bytes = b""
    ) -> None:
        self._sink = sink
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent_id = parent_id
        self.flags = flags
        self.state = state  # tracestate, as the client wrote it
        self.started_ns = time.time_ns()
        self.model = ""  # that the client asks for, as long as it is known

    def header(self) -> bytes:
        """The ``traceparent`` of a worker: its spans are children of ours."""
        return b"00-%032x-%016x-%02x" % (self.trace_id, self.span_id, self.flags)

    def replace(self, headers: Sequence[Header]) -> list[Header]:
        """The client's headers with our ``traceparent`` for its own; ``tracestate`` stays with the trace it is of."""
        gone = (TRACEPARENT,) if self.parent_id else (TRACEPARENT, TRACESTATE)
        kept = [header for header in headers if header[0] not in gone]
        kept.append((TRACEPARENT, self.header()))
        return kept

    def end(self, flight: "Flight") -> None:
        """Its answer is whole, or as whole as it will be."""
        self._sink.take(span_of(self, flight))


class Tracing:
    """Begins traces, and goes on with those of clients."""

    def __init__(self, sink: SpanSink, rng: random.Random) -> None:
        self._sink = sink
        self._rng = rng

    def begin(self, headers: Sequence[Header]) -> Trace | None:
        """None for a request of a trace that is not recorded: its headers go on as they are.

        ``headers``: names in lower case. A ``traceparent`` that is not valid, or not the only one, counts for none.
        """
        given = [value for name, value in headers if name == TRACEPARENT]
        parent = parse_traceparent(given[0].strip()) if len(given) == 1 else None
        span_id = self._rng.getrandbits(64) or 1
        if parent is None:
            return Trace(self._sink, self._rng.getrandbits(128) or 1, span_id)
        if not parent.flags & SAMPLED:
            return None
        state = b",".join(value for name, value in headers if name == TRACESTATE)
        return Trace(self._sink, parent.trace_id, span_id, parent.span_id, parent.flags & PASSED_ON, state)

    async def close(self) -> None:
        await self._sink.close()


def create_tracing(endpoint: str | None, rng: random.Random) -> Tracing | None:
    """None without an endpoint. OpenTelemetry is imported here, and only then. Raises ConfigError if it is missing."""
    if endpoint is None:
        return None
    try:
        from relay.tracing.otlp import OtlpSink
    except ImportError as error:
        raise ConfigError(
            f"server_settings.otel_endpoint needs OpenTelemetry's packages ({error}): pip install 'ichat[otel]', "
            "or remove the key"
        ) from error
    return Tracing(OtlpSink(endpoint), rng)
