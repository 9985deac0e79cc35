"""Trace context by itself: which headers count, and what a worker gets for them."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.headers import Header
from relay.tracing.context import Parent, Trace, Tracing, create_tracing, parse_traceparent
from relay.tracing.spans import Span
from tests.doubles import PATIENT

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE_ID}-{SPAN_ID}-01".encode()


class Spans:
    """A sink that keeps what it takes."""

    def __init__(self) -> None:
        self.taken: list[Span] = []

    def take(self, span: Span) -> None:
        self.taken.append(span)

    async def close(self) -> None:
        pass


def tracing() -> Tracing:
    return Tracing(Spans(), random.Random(1))


def begin(*headers: Header) -> Trace:
    trace = tracing().begin(headers)
    assert trace is not None
    return trace


@pytest.mark.parametrize(
    ("value", "flags"),
    [(GIVEN, 1), (GIVEN[:-2] + b"00", 0), (GIVEN[:-2] + b"ff", 255), (b"cc" + GIVEN[2:], 1),
     (b"cc" + GIVEN[2:] + b"-more", 1)],
)  # fmt: skip
def test_a_traceparent_is_read(value: bytes, flags: int) -> None:
    assert parse_traceparent(value) == Parent(int(TRACE_ID, 16), int(SPAN_ID, 16), flags)


@pytest.mark.parametrize(
    "value",
    [
        b"", b"00", GIVEN[:-1], GIVEN + b"0", GIVEN + b"-more", GIVEN.upper(), b"ff" + GIVEN[2:], b" " + GIVEN,
        b"cc" + GIVEN[2:] + b".more", b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-" + b"0" * 16 + b"-01", GIVEN.replace(b"-", b"_"), b"\xff" * 55,
    ],
)  # fmt: skip
def test_what_is_no_traceparent_is_none(value: bytes) -> None:
    assert parse_traceparent(value) is None


@PATIENT
@given(st.one_of(st.binary(), st.from_regex(rb"[0-9a-f]{2}-[0-9a-f]{30,33}-[0-9a-f]{16}-[0-9a-f]{2}-?")))
def test_any_traceparent_leads_to_a_good_one(value: bytes) -> None:
    trace = tracing().begin([(b"traceparent", value)])
    read, given_parent = trace and parse_traceparent(trace.header()), parse_traceparent(value.strip())
    if trace is None:
        assert given_parent is not None and not given_parent.flags & 1
        return
    assert read == Parent(trace.trace_id, trace.span_id, trace.flags)
    assert trace.parent_id == (given_parent.span_id if given_parent else 0)


def test_a_clients_trace_goes_on() -> None:
    trace = begin((b"traceparent", GIVEN), (b"tracestate", b"a=1"), (b"accept", b"*/*"), (b"tracestate", b"b=2"))
    assert (f"{trace.trace_id:032x}", f"{trace.parent_id:016x}", trace.state) == (TRACE_ID, SPAN_ID, b"a=1,b=2")
    assert trace.span_id not in (0, trace.parent_id)


def test_the_worker_gets_our_traceparent_and_the_clients_tracestate() -> None:
    headers = [(b"traceparent", GIVEN), (b"tracestate", b"a=1"), (b"accept", b"*/*")]
    trace = begin(*headers)
    assert trace.replace(headers) == [*headers[1:], (b"traceparent", trace.header())]
    assert headers[0] == (b"traceparent", GIVEN)
    assert trace.header() == f"00-{TRACE_ID}-{trace.span_id:016x}-01".encode()


@pytest.mark.parametrize(
    "wrong", [[], [(b"traceparent", b"nonsense")], [(b"traceparent", GIVEN), (b"traceparent", GIVEN)]]
)
def test_without_one_good_traceparent_a_trace_begins_and_tracestate_goes(wrong: list[Header]) -> None:
    headers = [*wrong, (b"tracestate", b"a=1"), (b"accept", b"*/*")]
    trace = begin(*headers)
    assert (trace.parent_id, trace.state) == (0, b"")
    assert f"{trace.trace_id:032x}" != TRACE_ID
    assert trace.replace(headers) == [(b"accept", b"*/*"), (b"traceparent", trace.header())]


def test_traces_differ() -> None:
    one = tracing()
    traces = [one.begin([]) for _ in range(3)]
    assert len({trace.trace_id for trace in traces if trace}) == 3
    assert len({trace.span_id for trace in traces if trace}) == 3


def test_a_trace_that_is_not_recorded_is_none_of_ours() -> None:
    assert tracing().begin([(b"traceparent", GIVEN[:-2] + b"00")]) is None


@pytest.mark.parametrize(("flags", "sent"), [(b"01", b"01"), (b"03", b"03"), (b"ff", b"03"), (b"05", b"01")])
def test_flags_of_other_meanings_are_not_passed_on(flags: bytes, sent: bytes) -> None:
    assert begin((b"traceparent", GIVEN[:-2] + flags)).header()[-2:] == sent


def test_without_an_endpoint_there_is_no_tracing() -> None:
    assert create_tracing(None, random.Random(1)) is None
