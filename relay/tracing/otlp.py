"""OtlpSink: spans by OTLP over HTTP to a collector. Imported late, and only if the settings name one.

Everything but ``take`` happens in the threads of OpenTelemetry's BatchSpanProcessor and of ``close``.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from relay.tracing.spans import Span, attributes_of
from utils.common import package_version
from utils.logger import EventLogger

CLOSE_LIMIT_S: Final = 2.0
"""So long the gateway's end waits for the last spans to be sent."""
SERVICE: Final = "ichat-gateway"
ANY_SAMPLED: Final = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
"""What the processor looks at before it queues a span: spans that are not recorded do not come here."""
MAX_QUEUE: Final = 2048
DELAY_S: Final = 2.0
"""A span waits for others no longer than this."""
BATCH: Final = 128
"""Spans in one POST, at most."""
BREATH: Final = 8
BREATH_S: Final = 0.0001
"""To encode a span takes as much CPU as to relay a request, and holds the interpreter. So that the event loop waits for
less than a millisecond of it, and not for the 5 of ``sys.getswitchinterval``, the thread sleeps after every few."""

logger = EventLogger("tracing")


class LateSpan(ReadableSpan):
    """A span in the processor's queue, which is made into OpenTelemetry's in the exporter's thread."""

    def __init__(self, span: Span) -> None:
        self.span = span

    @property
    def context(self) -> SpanContext:
        return ANY_SAMPLED


class OneResource(Resource):
    """Equal to itself alone: the encoder looks each span's resource up, and the usual hash writes it as JSON first."""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


class Batch(list[ReadableSpan]):
    """Late spans, each made whole as the encoder comes to it."""

    def __init__(self, late: Iterable[ReadableSpan], make: Callable[[ReadableSpan], ReadableSpan]) -> None:
        super().__init__(late)
        self._make = make

    def __iter__(self) -> Iterator[ReadableSpan]:
        for number, span in enumerate(super().__iter__(), start=1):
            yield self._make(span)
            if number % BREATH == 0:
                time.sleep(BREATH_S)


class Complaints(logging.Handler):
    """What OpenTelemetry's loggers say in words: kept for our own line, for they would print one for each batch."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.first = ""
        library = logging.getLogger("opentelemetry")
        library.handlers, library.propagate = [self], False
        logging.getLogger("opentelemetry.sdk").setLevel(logging.ERROR)  # "queue full", for each span

    def emit(self, record: logging.LogRecord) -> None:
        self.first = self.first or record.getMessage()


class QuietExporter(SpanExporter):
    """Sends batches; a collector that is away is logged when that begins, and when it ends."""

    def __init__(self, exporter: SpanExporter, endpoint: str, complaints: Complaints, resource: Resource) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._complaints = complaints
        self._resource = resource
        self._scope = InstrumentationScope("ichat", package_version("ichat"))
        self._failed_spans = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._complaints.first = ""
        try:
            result = self._exporter.export(Batch(spans, self._whole))
        except Exception as error:  # the top of the thread's work
            result = SpanExportResult.FAILURE
            self._complaints.first = f"{type(error).__name__}: {error}"
        self._note(result, len(spans))
        return result

    def _note(self, result: SpanExportResult, count: int) -> None:
        if result is SpanExportResult.SUCCESS:
            if self._failed_spans:
                logger.info("collector_back", endpoint=self._endpoint, lost_at_least=self._failed_spans)
            self._failed_spans = 0
            return
        if not self._failed_spans:
            why = self._complaints.first or "no reason given"
            logger.warning(
                "collector_away", endpoint=self._endpoint, why=why, effect="spans are lost, requests are not"
            )
        self._failed_spans += count

    def _whole(self, late: ReadableSpan) -> ReadableSpan:
        assert isinstance(late, LateSpan)
        span, trace = late.span, late.span.trace
        flags, state = TraceFlags(trace.flags), TraceState.from_header([trace.state.decode("latin-1")])
        parent = SpanContext(trace.trace_id, trace.parent_id, is_remote=True, trace_flags=flags, trace_state=state)
        return ReadableSpan(
            f"POST {span.route}",
            context=SpanContext(trace.trace_id, trace.span_id, is_remote=False, trace_flags=flags, trace_state=state),
            parent=parent if trace.parent_id else None,
            resource=self._resource,
            attributes=attributes_of(span),
            kind=SpanKind.SERVER,
            instrumentation_scope=self._scope,
            status=Status(StatusCode.ERROR if span.is_failure else StatusCode.UNSET),
            start_time=trace.started_ns,
            end_time=trace.started_ns + int(span.duration_s * 1e9),
        )

    def shutdown(self) -> None:
        self._exporter.shutdown()


class OtlpSink:
    """A bounded queue and a thread that sends what is in it: the oldest spans are lost when it is full."""

    def __init__(self, endpoint: str, delay_s: float = DELAY_S) -> None:
        self._endpoint = endpoint
        # What OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say comes first.
        own = Resource({"service.name": SERVICE, "service.version": package_version("ichat")})
        merged = own.merge(OTELResourceDetector().detect())
        resource = OneResource(merged.attributes, merged.schema_url)
        self._exporter = QuietExporter(OTLPSpanExporter(endpoint=endpoint), endpoint, Complaints(), resource)
        self._processor = BatchSpanProcessor(self._exporter, MAX_QUEUE, delay_s * 1000, BATCH)

    def take(self, span: Span) -> None:
        self._processor.on_end(LateSpan(span))

    async def close(self) -> None:
        """Ends the thread. A collector that does not answer is not waited for longer than ``CLOSE_LIMIT_S``."""
        closing = threading.Thread(target=self._processor.shutdown, name="spans-close", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, CLOSE_LIMIT_S)
        if closing.is_alive():
            logger.warning("spans_not_sent", endpoint=self._endpoint, limit_s=CLOSE_LIMIT_S)
            self._exporter.shutdown()  # no further tries
