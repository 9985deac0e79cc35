"""``performance``: where a request's time went, told in its answer if the client asks, and summed up for /metrics.

Asked for by the header ``x-ichat-performance: 1``, or by ``"include_performance": true`` in the body; without, an
answer is the engine's own, byte for byte. It stands beside the answer's other fields; in a stream, in its last event.
"""

import json
import time
from typing import Any, Final

from backends.base import ASGIApp
from backends.timing import RECORDER, Recorder, Spans
from worker.last_event import LastEvent
from worker.metrics import Traffic

HEADER: Final = b"x-ichat-performance"
FIELD: Final = b'"include_performance"'
TRUE: Final = (b"1", b"true", b"yes")


class PerformanceApp:
    """Around the engine's app: every request is timed, and the answer of one that asks for it tells the times."""

    def __init__(self, app: ASGIApp, traffic: Traffic) -> None:
        self._app = app
        self._traffic = traffic

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        recorder = Recorder()
        answer = TimedAnswer(recorder, send, is_wanted=wants_performance(scope["headers"]))

        async def receive_and_look() -> Any:
            message = await receive()
            answer.look_at(message)
            return message

        token = RECORDER.set(recorder)
        try:
            await self._app(scope, receive_and_look, answer.send)
        finally:
            RECORDER.reset(token)
        self._traffic.add_spans(recorder.spans())  # of one that was not cut off


class TimedAnswer:
    """The way of one answer to its client."""

    def __init__(self, recorder: Recorder, send: Any, *, is_wanted: bool) -> None:
        self._recorder = recorder
        self._send = send
        self._is_wanted = is_wanted
        self._body: list[bytes] = []
        self._start: Any = None
        self._events: LastEvent | None = None
        self._arrived = time.perf_counter()
        self._first_at = 0.0

    def look_at(self, message: Any) -> None:
        """A piece of the request: does its body ask for the times?"""
        if not self._is_wanted and message["type"] == "http.request":
            self._body.append(message.get("body", b""))
            if not message.get("more_body"):
                body, self._body = b"".join(self._body), []
                self._is_wanted = FIELD in body and asks_for_performance(body)

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif self._events is not None:
            await self._send_events(self._events, message)
        elif self._start is not None:
            await self._send_whole(message)
        else:
            await self._send(message)

    async def _begin(self, message: Any) -> None:
        headers = {name.lower(): value for name, value in message["headers"]}
        kind = headers.get(b"content-type", b"")
        wanted = self._is_wanted and message["status"] == 200 and b"content-encoding" not in headers
        if wanted and kind.startswith(b"text/event-stream"):
            self._events = LastEvent(self._with_times)
        if wanted and kind.startswith(b"application/json"):
            self._start = message  # its length is not known yet
            return
        await self._send(message)

    # -- whole -----------------------------------------------------------------------------------------------------

    async def _send_whole(self, message: Any) -> None:
        self._body.append(message.get("body", b""))
        if message.get("more_body"):
            return
        body = self._with_times(b"".join(self._body))
        start = self._start
        headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self._send({**start, "headers": headers})
        await self._send({**message, "body": body})

    # -- streamed --------------------------------------------------------------------------------------------------

    async def _send_events(self, events: LastEvent, message: Any) -> None:
        self._first_at = self._first_at or time.perf_counter()
        is_end = not message.get("more_body")
        ready = events.feed(message.get("body", b""), is_end=is_end)
        if ready or is_end:
            await self._send({**message, "body": ready})

    def _with_times(self, body: bytes) -> bytes:
        spans = self._recorder.spans()
        if spans is not None:
            return with_performance(body, told(spans, "engine"))
        now, first_at = time.perf_counter(), self._first_at or self._arrived
        until_first = first_at - self._arrived if self._first_at else None
        spans = Spans(None, until_first, now - first_at, completion_tokens(body))
        return with_performance(body, told(spans, "worker"))


def told(spans: Spans, measured_by: str) -> dict[str, Any]:
    """The field's value: milliseconds, null for what is not known. ``measured_by``: the engine, or the worker, which
    sees only when the first and the last byte left: its prefill holds the queue, and of a whole answer it knows one
    time, which is called decode."""
    return {
        "queue_time_ms": milliseconds(spans.queue_s),
        "prefill_time_ms": milliseconds(spans.prefill_s),
        "decode_time_ms": milliseconds(spans.decode_s),
        "tokens_per_second": rounded(spans.tokens_per_second),
        "measured_by": measured_by,
    }


def milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 2)


def wants_performance(headers: Any) -> bool:
    return any(name == HEADER and value.strip().lower() in TRUE for name, value in headers)


def asks_for_performance(body: bytes) -> bool:
    try:
        return json.loads(body).get("include_performance") is True
    except (ValueError, AttributeError, RecursionError):
        return False  # the engine will say what is wrong with it


def completion_tokens(answer: bytes) -> int:
    """As the answer's usage tells them; 0 where it does not."""
    try:
        return int(json.loads(answer)["usage"]["completion_tokens"])
    except (ValueError, TypeError, KeyError):
        return 0


def with_performance(body: bytes, performance: dict[str, Any]) -> bytes:
    """A JSON object with one field more; anything else as it is. What stands in it already is not touched."""
    text = body.rstrip()
    if not text.startswith(b"{") or not text.endswith(b"}") or not text[1:-1].strip():
        return body
    return text[:-1] + b',"performance":' + json.dumps(performance).encode() + b"}"
