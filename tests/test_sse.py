"""Server-sent events as the standard has them, in whatever pieces the network brings them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sse_starlette import ServerSentEvent

from tests.doubles import PATIENT
from utils.sse import MAX_EVENT_BYTES, Event, SSEParser


def parse(*chunks: bytes) -> list[Event]:
    parser = SSEParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


@pytest.mark.parametrize(
    ("sent", "events"),
    [
        (b"data: hello\n\n", [Event("hello")]),
        (b"data:hello\n\n", [Event("hello")]),
        (b"data:  hello\n\n", [Event(" hello")]),
        (b"data: a: b\n\n", [Event("a: b")]),
        (b"data: one\ndata: two\n\n", [Event("one\ntwo")]),
        (b"event: log\ndata: x\n\ndata: y\n\n", [Event("x", "log"), Event("y")]),
        (b"id: 7\ndata: x\n\ndata: y\n\n", [Event("x", id="7"), Event("y", id="7")]),
        (b"id: 7\ndata: x\n\nid\ndata: y\n\n", [Event("x", id="7"), Event("y")]),
        (b"id: 7\n\ndata: x\n\n", [Event("x", id="7")]),
        (b"id: 7\ndata: x\n\nid: 8\0\ndata: y\n\n", [Event("x", id="7"), Event("y", id="7")]),
        (b": ping\n\ndata: x\n\n", [Event("x")]),
        (b"retry: 10\nunknown: y\ndata: x\n\n", [Event("x")]),
        (b"data\n\n", [Event("")]),
        (b"event: log\n\ndata: x\n\n", [Event("x")]),
        (b"data: x\r\n\r\ndata: y\r\rdata: z\n\n", [Event("x"), Event("y"), Event("z")]),
        (b"\xef\xbb\xbfdata: x\n\n", [Event("x")]),
        (b"data: \xe4\xbd\xa0\n\n", [Event("你")]),
        (b"data: \xff\n\n", [Event("\ufffd")]),
        (b"\n\n\n", []),
        (b"data: the end never came\n", []),
    ],
)
def test_fields_and_lines_are_read_as_the_standard_says(sent: bytes, events: list[Event]) -> None:
    assert parse(sent) == events


def test_a_line_end_may_come_in_two_parts_with_nothing_between() -> None:
    assert parse(b"data: one\r", b"", b"\ndata: two\n\n") == [Event("one\ntwo")]


@st.composite
def streams_in_pieces(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A stream with all three line ends, and the same cut anywhere."""
    fields = st.sampled_from(
        ["data: a", "data: 你", "data", "id: 3", "id", "event: log", ": c", "\ufeffdata: b", "", ""]
    )
    lines = draw(st.lists(st.tuples(fields, st.sampled_from(["\n", "\r", "\r\n"])), max_size=25))
    mark = draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    sent = mark + "".join(field + end for field, end in lines).encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(sent)), max_size=10)))
    return sent, [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)]


@PATIENT
@given(streams_in_pieces())
def test_any_cut_gives_the_same_events(stream: tuple[bytes, list[bytes]]) -> None:
    sent, pieces = stream
    assert parse(*pieces) == parse(*(bytes([byte]) for byte in sent)) == parse(sent)


@PATIENT
@given(st.lists(st.tuples(st.text(), st.integers(1, 10**6)), max_size=5))
def test_what_our_servers_send_comes_back_whole(lines: list[tuple[str, int]]) -> None:
    sent = b"".join(ServerSentEvent(data=text, id=str(number), event="log").encode() for text, number in lines)
    texts = [text.replace("\r\n", "\n").replace("\r", "\n") for text, _ in lines]
    assert parse(sent) == [Event(text, "log", str(number)) for text, (_, number) in zip(texts, lines, strict=True)]


@pytest.mark.parametrize(
    "chunks",
    [
        [b"data: " + b"x" * MAX_EVENT_BYTES],
        [b"data: " + b"x" * MAX_EVENT_BYTES + b"\n\n"],
        [b"data: x\n" * (MAX_EVENT_BYTES // 7), b"data: x\n" * 10],
    ],
    ids=["no end", "in one piece", "many lines"],
)
def test_an_event_without_measure_is_refused(chunks: list[bytes]) -> None:
    with pytest.raises(ValueError, match="longer than"):
        parse(*chunks)


def test_many_events_may_be_longer_together() -> None:
    event = b"data: " + b"x" * (MAX_EVENT_BYTES // 3) + b"\n\n"
    assert len(parse(event * 4)) == 4
