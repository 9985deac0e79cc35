"""Where a request's time went, told in its answer if it asks."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.timing import RECORDER, Spans, Times, combine, note_times, times_of_meta_info
from tests.doubles import PATIENT
from utils.sse import SSEParser
from worker.last_event import LastEvent
from worker.metrics import Traffic
from worker.performance import HEADER, PerformanceApp

ENGINE_TIMES = Times(queued=10.0, scheduled=10.5, first_token=11.0, last_token=13.0, tokens=50)
TOLD = {"queue_time_ms": 500.0, "prefill_time_ms": 500.0, "decode_time_ms": 2000.0, "tokens_per_second": 20.0,
        "measured_by": "engine"}  # fmt: skip
ASKS = [(HEADER, b"1")]
WHOLE = {"id": "1", "usage": {"completion_tokens": 50}}
EVENTS = [b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n',
          b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
          b'data: {"choices":[],"usage":{"completion_tokens":50}}\n\n', b"data: [DONE]\n\n"]  # fmt: skip


class Answered:
    """What an app sent for one request."""

    def __init__(self) -> None:
        self.traffic = Traffic()
        self.messages: list[Any] = []

    async def ask(
        self,
        pieces: Sequence[bytes],
        *,
        kind: bytes = b"application/json",
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes = b"{}",
        times: Times | None = ENGINE_TIMES,
        status: int = 200,
    ) -> "Answered":
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            if times is not None:
                note_times(lambda: times)
            length = [(b"content-length", b"%d" % len(b"".join(pieces)))] if kind == b"application/json" else []
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind), *length]})
            for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            self.messages.append(message)

        await PerformanceApp(app, self.traffic)({"type": "http", "method": "POST", "headers": headers}, receive, send)
        return self

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])

    @property
    def events(self) -> list[dict[str, Any]]:
        words = [event.removeprefix(b"data: ") for event in self.body.split(b"\n\n") if event]
        assert words.pop() == b"[DONE]"
        return [json.loads(word) for word in words]


def bytes_of(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (ASKS, b"{}"),
        ([(HEADER, b"true")], b"{}"),
        ([], b'{"include_performance": true}'),
        ([], b'{"include_performance" :true, "stream": false}'),
    ],
)
async def test_a_whole_answer_tells_what_was_asked_for(headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    answered = await Answered().ask([bytes_of(WHOLE)], headers=headers, body=body)
    assert json.loads(answered.body) == {**WHOLE, "performance": TOLD}
    assert dict(answered.messages[0]["headers"])[b"content-length"] == b"%d" % len(answered.body)


@pytest.mark.anyio
@pytest.mark.parametrize("body", [b"{}", b'{"include_performance": false}', b'["include_performance"]', b"no JSON",
                                  b'{"messages": "say \\"include_performance\\": true"}'])  # fmt: skip
async def test_who_does_not_ask_gets_the_engines_bytes(body: bytes) -> None:
    answered = await Answered().ask([bytes_of(WHOLE)], body=body)
    assert answered.body == bytes_of(WHOLE)
    streamed = await Answered().ask(EVENTS, kind=b"text/event-stream", body=body)
    assert [message["body"] for message in streamed.messages[1:]] == [*EVENTS, b""]


@pytest.mark.anyio
@pytest.mark.parametrize("events", [EVENTS, [*EVENTS[:2], EVENTS[3]], [b"".join(EVENTS)]])
async def test_a_stream_tells_it_in_its_last_event(events: list[bytes]) -> None:
    answered = await Answered().ask(events, kind=b"text/event-stream; charset=utf-8", headers=ASKS)
    *before, last = answered.events
    assert last["performance"] == TOLD
    assert not any("performance" in event for event in before)
    plain = await Answered().ask(events, kind=b"text/event-stream")
    assert [*before, {name: last[name] for name in last if name != "performance"}] == plain.events


@pytest.mark.anyio
async def test_a_stream_without_done_tells_it_too() -> None:
    events = [
        b'event: content\ndata: {"type":"content"}\n\n',
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    ]
    answered = await Answered().ask(events, kind=b"text/event-stream", headers=ASKS)
    last = answered.body.split(b"\n\n")[1]
    assert last.startswith(b"event: message_stop\ndata: ")
    assert json.loads(last.partition(b"data: ")[2])["performance"] == TOLD


@pytest.mark.anyio
async def test_tokens_do_not_wait_for_the_next() -> None:
    """Only what may be the last event does."""
    at_once: list[bytes] = []
    last = LastEvent(lambda data: data)
    for event in EVENTS:
        at_once.append(last.feed(event, is_end=False))
    assert at_once == [EVENTS[0], b"", EVENTS[1], EVENTS[2] + EVENTS[3]]


@pytest.mark.anyio
async def test_a_request_leaves_nothing_behind() -> None:
    await Answered().ask([bytes_of(WHOLE)], headers=ASKS)
    assert RECORDER.get() is None


def test_a_comment_between_is_not_the_last_event() -> None:
    last = LastEvent(lambda data: data[:-1] + b',"x":1}')
    out = last.feed(EVENTS[1] + b": ping\n\n", is_end=False) + last.feed(b"data:[DONE]\n\n", is_end=True)
    assert out == b": ping\n\n" + EVENTS[1][:-3] + b',"x":1}\n\n' + b"data:[DONE]\n\n"


@given(st.lists(st.integers(1, 200), max_size=5), st.sampled_from([b"\n", b"\r\n", b"\r"]))
@PATIENT
@pytest.mark.anyio
async def test_any_cut_of_the_bytes_gives_the_same_events(cuts: list[int], line_end: bytes) -> None:
    whole = b"".join(EVENTS).replace(b"\n", line_end)
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    pieces = [whole[start:end] for start, end in pairwise(places)]
    answered = await Answered().ask(pieces, kind=b"text/event-stream", headers=ASKS)
    parser = SSEParser()
    *events, done = [event.data for message in answered.messages[1:] for event in parser.feed(message["body"])]
    assert done == "[DONE]"
    assert json.loads(events[-1])["performance"] == TOLD
    assert [json.loads(event)["choices"] for event in events] == [
        json.loads(event[6:])["choices"] for event in EVENTS[:3]
    ]
    plain = b"".join(message["body"] for message in answered.messages[1:])
    assert plain.replace(b',"performance":' + json.dumps(TOLD).encode(), b"") == whole


@pytest.mark.anyio
async def test_what_never_ends_is_not_kept() -> None:
    pieces = [b"x" * 300_000] * 20
    answered = await Answered().ask(pieces, kind=b"text/event-stream", headers=ASKS)
    assert answered.body == b"".join(pieces)
    assert max(len(message["body"]) for message in answered.messages[1:]) < 2_000_000


@pytest.mark.anyio
async def test_where_the_engine_is_silent_the_worker_measures() -> None:
    answered = await Answered().ask([bytes_of(WHOLE)], headers=ASKS, times=None)
    told = json.loads(answered.body)["performance"]
    assert told["measured_by"] == "worker"
    assert told["queue_time_ms"] is None
    assert told["decode_time_ms"] > 0
    assert told["tokens_per_second"] > 0
    streamed = await Answered().ask(EVENTS, kind=b"text/event-stream", headers=ASKS, times=None)
    assert streamed.events[-1]["performance"]["prefill_time_ms"] > 0


@pytest.mark.anyio
@pytest.mark.parametrize(("status", "body"), [(400, b'{"error": {}}'), (200, b"[1]"), (200, b"{}"), (200, b"")])
async def test_what_is_no_answer_is_left_alone(status: int, body: bytes) -> None:
    answered = await Answered().ask([body], headers=ASKS, status=status)
    assert answered.body == body


@pytest.mark.anyio
async def test_all_requests_are_summed_up() -> None:
    answered = await Answered().ask([bytes_of(WHOLE)])
    traffic = answered.traffic
    assert (traffic.timed, traffic.queue_s, traffic.prefill_s, traffic.decode_s, traffic.tokens) == (1, 0.5, 0.5, 2, 50)


def test_the_times_of_several_sequences_are_those_of_the_whole() -> None:
    other = Times(queued=10.0, scheduled=12.0, first_token=12.5, last_token=15.0, tokens=10)
    assert combine([ENGINE_TIMES, other]) == Spans(queue_s=0.5, prefill_s=2.0, decode_s=2.5, tokens=60)
    assert combine([]) is None
    assert combine([Times()]) is None
    assert combine([Times(queued=1, scheduled=2)]) == Spans(queue_s=1.0, tokens=0)


def test_sglangs_meta_info_is_read() -> None:
    told = {"forward_entry_time": 10.5, "queue_time": 0.5, "prefill_finished_time": 11.0, "request_finished_ts": 13.0,
            "completion_tokens": 50}  # fmt: skip
    assert times_of_meta_info(told) == ENGINE_TIMES
    assert times_of_meta_info({}) == Times()
