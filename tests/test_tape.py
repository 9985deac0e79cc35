"""What passes to the client of a stream, and what is held back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.streams.kept import KEPT_AFTER_ALL, OBJECT_BYTES, RUN_BYTES
from relay.streams.tape import Tape
from relay.streams.unresumable import CHAT
from tests.doubles import PATIENT
from tests.model_double import DIED, DONE, REFUSED, Model, sse

LIMIT = 1 << 20
WHOLE = Model([b"one ", b"two ", b"three"]).answer(CHAT, {"messages": []}, 1)
*EVENTS, _ = [event + b"\n\n" for event in WHOLE.split(b"\n\n")]
ROLE, ONE, TWO, THREE, _ = EVENTS
ABORTED = THREE.replace(b'"stop"', b'"abort"')


def told(index: int, finish: str | None = None) -> bytes:
    return sse({"choices": [{"index": index, "delta": {"content": "x"}, "finish_reason": finish}]})


def play(tape: Tape, *pieces: bytes) -> bytes:
    return b"".join(tape.feed(piece) for piece in pieces) + tape.finish()


@pytest.mark.parametrize(
    "stream",
    [
        WHOLE,
        WHOLE.removesuffix(DONE),
        WHOLE.removesuffix(b"\n\n"),
        WHOLE.replace(b"\n", b"\r\n"),
        WHOLE.replace(b"\n", b"\r"),
        b"\xef\xbb\xbf" + WHOLE,
        b": hello\n\n" + ROLE + b": here\n\nevent: x\nid: 7\n" + ONE + b"retry: 7\n\n" + THREE + DONE + b": bye\n\n",
        ROLE + THREE.replace(b"choices", b'x":1,\ndata: "choices') + DONE,
        ROLE + REFUSED + DONE,
        ROLE + REFUSED,
        b"".join(ONE.replace(b"one ", word) for word in (b"error", b"abort", b"[DONE]")) + THREE + DONE,
        told(0) + told(1) + told(1, "stop") + told(0, "length") + DONE,
        ROLE + THREE + sse({"choices": [], "usage": None}) + b"data: not JSON [DONE]\n\n" + DONE,
        ROLE + sse({"choices": [], "error": None}) + THREE + DONE,
    ],
    ids=["whole", "no [DONE]", "no last line end", "CRLF", "CR", "BOM", "comments", "data lines", "refused",
         "refused and cut", "suspicious words", "two choices", "garbage", "no error"],
)  # fmt: skip
@pytest.mark.parametrize("width", [1, 7, 100, LIMIT])
def test_a_good_stream_passes_as_it_is(stream: bytes, width: int) -> None:
    tape = Tape(LIMIT)
    assert play(tape, *(stream[start : start + width] for start in range(0, len(stream), width))) == stream
    assert b"".join(tape.passed) == stream
    assert (tape.is_broken, tape.is_resumable) == (False, True)


@pytest.mark.parametrize(
    ("stream", "passed", "reason"),
    [
        (ROLE + ONE + DIED + DONE, ROLE + ONE, "EngineCore encountered"),
        (ROLE + ONE + DONE, ROLE + ONE, "without a finish_reason"),
        (ROLE + ONE, ROLE + ONE, "without a finish_reason"),
        (ROLE + ONE + b"data: [DONE]", ROLE + ONE, "without a finish_reason"),
        (ROLE + ONE + TWO[:-1], ROLE + ONE, "without a finish_reason"),
        (ROLE + ONE + ABORTED + DONE, ROLE + ONE, "finish_reason abort"),
        (told(0) + told(1) + told(0, "stop") + DONE, told(0) + told(1) + told(0, "stop"), "without a finish_reason"),
        (ROLE + sse({"error": "it broke"}) + DONE, ROLE, "it broke"),
        (ROLE + sse({"error": {"type": "server_error", "message": "no", "code": "x"}}), ROLE, "engine failed: no"),
        (DONE, b"", "without a finish_reason"),
        (b"", b"", "without a finish_reason"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("width", [1, 7, LIMIT])
def test_a_bad_end_is_held_back(stream: bytes, passed: bytes, reason: str, width: int) -> None:
    tape = Tape(LIMIT)
    assert play(tape, *(stream[start : start + width] for start in range(0, len(stream), width))) == passed
    assert b"".join(tape.passed) == passed
    assert (tape.is_broken, tape.is_resumable, tape.is_done) == (True, True, False)
    assert reason in tape.reason
    assert tape.feed(THREE) + tape.finish() == b""


@pytest.mark.parametrize(
    ("error", "is_broken"),
    [
        ({"code": 500}, True),
        ({"code": 503}, True),
        ({"code": 501}, False),
        ({"code": 400}, False),
        ({"code": 422}, False),
        ({"code": "worker_broke", "type": "server_error"}, True),
        ({"code": None, "type": "invalid_request_error"}, False),
        ({"type": "BadRequestError"}, False),
        ({}, True),
    ],
)
def test_an_error_is_the_engines_or_the_requests_own(error: dict[str, object], is_broken: bool) -> None:
    tape = Tape(LIMIT)
    event = sse({"error": {"message": "no", **error}})
    assert tape.feed(ROLE) + tape.feed(event) == ROLE + (b"" if is_broken else event)
    assert (tape.is_broken, tape.has_failed) == (is_broken, not is_broken)


def test_what_passes_is_not_copied() -> None:
    tape = Tape(LIMIT)
    assert tape.feed(ONE) is ONE
    assert tape.passed[0] is ONE


def test_a_part_of_an_event_waits_for_the_rest() -> None:
    tape = Tape(LIMIT)
    assert [tape.feed(ROLE + ONE[:20]), tape.feed(ONE[20:30]), tape.feed(b""), tape.feed(ONE[30:] + TWO)] == [
        ROLE, b"", b"", ONE + TWO,
    ]  # fmt: skip


def test_what_is_too_long_is_not_kept_and_passes_as_before() -> None:
    tape = Tape(limit=RUN_BYTES + (len(ONE) + OBJECT_BYTES) * 20)
    assert all(tape.feed(ONE) is ONE for _ in range(20))
    assert tape.is_resumable
    assert tape.feed(ONE) is ONE
    assert not tape.is_resumable
    assert all(tape.feed(ONE) is ONE for _ in range(1000))
    assert len(tape.passed) == KEPT_AFTER_ALL
    assert tape.feed(THREE + DONE) == THREE + DONE
    assert (tape.is_done, tape.is_broken) == (True, False)


@pytest.mark.parametrize("end", [DONE, b""])
def test_what_is_too_long_can_still_break(end: bytes) -> None:
    tape = Tape(limit=1)
    assert play(tape, *[ONE] * 20, end) == ONE * 20
    assert (tape.is_broken, tape.is_resumable) == (True, False)


def test_of_several_choices_one_is_enough_where_the_others_are_forgotten() -> None:
    tape = Tape(limit=1)
    stream = [told(0), told(1), told(0, "stop"), *[told(1)] * 20, told(1, "stop"), DONE]
    assert play(tape, *stream) == b"".join(stream)
    assert not tape.is_broken


def test_a_tape_may_begin_with_what_another_passed() -> None:
    tape = Tape(LIMIT, [ROLE, ONE])
    assert play(tape, THREE, DONE) == THREE + DONE
    assert list(tape.passed) == [ROLE, ONE, THREE, DONE]


PARTS = [
    ROLE, ONE, TWO.replace(b"two ", "你".encode()), THREE, DIED, REFUSED, ABORTED, told(1), told(1, "stop"),
    b": c\n\n", b"event: x\ndata: [DONE]\ndata: 2\n\n", ONE.replace(b"\n", b"\r\n"), THREE.replace(b"\n", b"\r"),
    b"\n", b"\r",
]  # fmt: skip
ENDS = [b"", DONE, DONE.replace(b"\n", b"\r"), DONE.replace(b"\n", b"\r\n"), DONE + b": bye\n\n", DONE[:-1]]
"""No event but comments comes after ``[DONE]``: that is not looked for where events are well."""


@PATIENT
@given(st.lists(st.sampled_from(PARTS), max_size=8), st.sampled_from(ENDS), st.data())
def test_any_split_gives_the_same(parts: list[bytes], end: bytes, data: st.DataObject) -> None:
    stream = b"".join(parts) + end
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    tape, at_once = Tape(LIMIT), Tape(LIMIT)
    passed = play(tape, *(stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)))
    expected = play(at_once, *(bytes([byte]) for byte in stream))
    assert passed == expected
    assert stream.startswith(passed)
    assert (tape.is_broken, tape.is_done, tape.reason) == (at_once.is_broken, at_once.is_done, at_once.reason)
    assert b"".join(tape.passed) == passed


def test_the_words_that_are_looked_for_are_what_engines_write() -> None:
    """SGLang writes its events without a blank after colons, the fake engine with one."""
    for separators in ((",", ":"), (", ", ": ")):
        chunk = json.dumps({"choices": [{"index": 0, "finish_reason": "abort"}]}, separators=separators)
        tape = Tape(LIMIT)
        assert tape.feed(f"data: {chunk}\n\n".encode()) == b""
        assert tape.is_broken
