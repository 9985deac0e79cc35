"""Whole chunks on their way from a worker's connection to a client's."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.call import Call
from relay.streams.express import Express
from relay.streams.kept import KEPT_AFTER_ALL, Kept
from relay.streams.tape import Tape
from relay.upstream.sole_chunk import MAX_READ_BYTES
from tests.doubles import PATIENT
from tests.model_double import DONE, sse
from tests.test_tape import ENDS, LIMIT, ONE, PARTS, ROLE, THREE, TWO, play, told
from tests.upstream_double import Wire

TEXTS = [
    "one ",
    "",
    "你",
    'a "word"',
    "two\nlines",
    "a\\",
    "[DONE]",
    "error",
    '"error"',
    '"abort"',
    "}\n\ndata: [DONE]",
]
TOLD = [told(0).replace(b'"x"', json.dumps(text, ensure_ascii=False).encode()) for text in TEXTS]

IN_A_TEXT = b'"}}],"error":"dead","x":[{"delta":{"content":"'
OPEN = b'data: {"content":"}\n\n'


def framed(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def express(limit: int = LIMIT) -> tuple[Express, Wire, Call]:
    def crash(error: Exception) -> None:
        raise error

    wire = Wire()
    call = Call(wire, lambda: None, lambda _: None, "/v1/x", b"/v1/x", [], 1000)
    return Express(limit, call, crash), wire, call


def in_chunks(tape: Express, wire: Wire, *pieces: bytes) -> bytes:
    """As a flight does it that gets each piece as a chunk of its own; what the client gets."""
    passed = b""
    for piece in pieces:
        before = len(wire.heard)
        if tape.ride(framed(piece)):
            assert wire.heard[before:] == framed(piece)
            passed += piece
        else:
            assert len(wire.heard) == before
            passed += tape.feed(piece)
    return passed + tape.finish()


@PATIENT
@given(st.lists(st.sampled_from([*PARTS, *TOLD, *TOLD[:1] * 20, ONE[:20]]), max_size=30), st.sampled_from(ENDS))
@example([ONE, b": {}\n\n"], DONE)
@example([TOLD[0], TOLD[0], TOLD[0].replace(b"one ", b'"},"finish_reason":"abort'), THREE], DONE)
@example([TOLD[0], TOLD[0], b"data: " + ONE, TOLD[0][:-9], TOLD[0][-9:], THREE], DONE)
@example([*TOLD, *TOLD, told(0, "stop")], DONE)
@example([TOLD[0], TOLD[0].replace(b"one ", IN_A_TEXT)], DONE)
@example([TOLD[0], TOLD[0].replace(b'"one "', b'"')], DONE)
@example([OPEN, OPEN[:-3] + b"x\n"], b"")
def test_whole_chunks_are_passed_as_any_pieces(parts: list[bytes], end: bytes) -> None:
    (tape, wire, _), plain = express(), Tape(LIMIT)
    passed = in_chunks(tape, wire, *parts, end)
    assert passed == play(plain, *parts, end)
    assert b"".join(tape.passed) == b"".join(plain.passed) == passed
    assert b"".join(tape.tail()) == b"".join(tape.passed[-2:])
    assert (tape.is_broken, tape.is_done, tape.reason) == (plain.is_broken, plain.is_done, plain.reason)


@pytest.mark.parametrize("of_chat", [True, False])
def test_of_chunks_that_differ_in_their_text_only_that_is_kept(of_chat: bool) -> None:
    one = ONE if of_chat else sse({"choices": [{"index": 0, "text": "one "}]})
    tape, wire, _ = express(limit=5000)
    assert in_chunks(tape, wire, ROLE, *[one] * 60, THREE, DONE) == ROLE + one * 60 + THREE + DONE
    assert tape.is_resumable
    assert b"".join(tape.passed) == ROLE + one * 60 + THREE + DONE
    assert tape.events >= 60
    longer, wire, _ = express(limit=5000)
    assert in_chunks(longer, wire, ROLE, *[one] * 100, THREE, DONE).endswith(THREE + DONE)
    assert (longer.is_resumable, longer.is_done) == (False, True)
    assert longer.tail() == [THREE, DONE]


def test_what_texts_take_is_bounded_and_what_follows_takes_no_more() -> None:
    tape, *_ = express(limit=5000)
    rides = [tape.ride(framed(ONE)) for _ in range(100)]
    assert all(rides) and not tape.is_resumable
    assert all(tape.ride(framed(piece)) for _ in range(200) for piece in (ONE, TWO, ROLE))
    assert len(tape.passed) <= KEPT_AFTER_ALL


def test_each_event_of_a_chunk_counts() -> None:
    tape, *_ = express()
    assert tape.ride(framed(ROLE + ONE + TWO))
    assert tape.ride(framed(ONE))
    assert tape.events == 4


def test_what_is_no_whole_chunk_is_left_alone() -> None:
    tape, wire, _ = express()
    assert tape.ride(framed(ONE))
    chunk, heard = framed(TWO), wire.heard
    others = [
        chunk[:-1], chunk[:-2] + b"xx", chunk[1:], b"0" + chunk, chunk + chunk, chunk + b"0\r\n\r\n", b"0\r\n\r\n",
        chunk.replace(b"\r\n", b";a=b\r\n", 1), framed(ONE[:-1]), framed(b"x" * MAX_READ_BYTES), b"",
    ]  # fmt: skip
    assert not any(tape.ride(other) for other in others)
    assert wire.heard == heard
    assert list(tape.passed) == [ONE]
    assert tape.ride(chunk)


@pytest.mark.parametrize("state", ["is_full", "response_complete"])
def test_nobody_is_written_to_who_has_no_room_or_his_answer(state: str) -> None:
    tape, wire, call = express()
    assert tape.ride(framed(ONE))
    heard = wire.heard
    setattr(call, state, True)
    assert not tape.ride(framed(TWO))
    assert (wire.heard, list(tape.passed)) == (heard, [ONE])


def test_after_a_part_of_an_event_all_is_read() -> None:
    tape, *_ = express()
    assert tape.ride(framed(ONE))
    assert tape.feed(TWO[:20]) == b""
    assert not tape.ride(framed(TWO[20:]))
    assert tape.feed(TWO[20:]) == TWO
    assert tape.ride(framed(TWO))


def test_what_fails_here_fails_this_request_alone() -> None:
    crashed: list[Exception] = []
    call = Call(Wire(), lambda: None, lambda _: None, "/v1/x", b"/v1/x", [], 1000)
    tape = Express(LIMIT, call, crashed.append)
    assert tape.ride(framed(ONE))
    del call.transport
    assert tape.ride(framed(ONE))
    assert isinstance(crashed.pop(), AttributeError)


def test_a_text_that_changes_its_key_is_learned_again() -> None:
    chunks = [sse({"choices": [{"index": 0, "delta": {key: "x"}}]}) for key in ("reasoning_content", "content")]
    kept = Kept(LIMIT)
    for chunk in chunks:
        kept.add(chunk)
        kept.learn(chunk)
        assert kept.prefix + b"x" + kept.suffix == chunk
