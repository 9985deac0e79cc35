"""Requests whose end two readers could see in different places: refused, or one request with one length for a worker.

Shapes after RFC 9112 (6.3, 7.1, 11.2) and what is known to have fooled other gateways.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.doubles import PATIENT
from tests.relay_double import Gate
from tests.wire import Echo, Wire, body_of, echoing, request, settled, wire

pytestmark = pytest.mark.anyio

BODY = body_of("mine")
HIDDEN = request(body_of("hidden"))
START = b"POST /v1/completions HTTP/1.1\r\n"
KIND = b"content-type: application/json\r\n"
HEAD = START + b"host: x\r\n" + KIND
LENGTH = b"content-length: %d\r\n" % len(BODY)
CHUNKED = b"transfer-encoding: chunked\r\n"


def chunks(body: bytes = BODY, size: bytes = b"", end: bytes = b"0\r\n\r\n") -> bytes:
    return b"%b\r\n%b\r\n%b" % (size or b"%x" % len(body), body, end)


REFUSED = {
    "CL and TE": HEAD + LENGTH + CHUNKED + b"\r\n" + chunks() + HIDDEN,
    "TE and CL": HEAD + CHUNKED + LENGTH + b"\r\n" + chunks() + HIDDEN,
    "CL.TE, the attack": HEAD + b"content-length: 4\r\n" + CHUNKED + b"\r\n" + chunks(HIDDEN),
    "two lengths": HEAD + LENGTH + b"content-length: 1\r\n\r\n" + BODY + HIDDEN,
    "two equal lengths": HEAD + LENGTH * 2 + b"\r\n" + BODY,
    "CL with plus": HEAD + b"content-length: +%d\r\n\r\n" % len(BODY) + BODY,
    "CL list": HEAD + b"content-length: %d, %d\r\n\r\n" % (len(BODY), len(BODY)) + BODY,
    "CL negative": HEAD + b"content-length: -1\r\n\r\n" + BODY,
    "CL hex": HEAD + b"content-length: 0x1f\r\n\r\n" + BODY,
    "CL overflow": HEAD + b"content-length: 18446744073709551617\r\n\r\n" + BODY,
    "CL empty": HEAD + b"content-length:\r\n\r\n" + BODY,
    "CL with point": HEAD + b"content-length: 5.0\r\n\r\n" + BODY,
    "CL folded": HEAD + b"content-length:\r\n %d\r\n\r\n" % len(BODY) + BODY,
    "TE list": HEAD + b"transfer-encoding: chunked, identity\r\n\r\n" + chunks(),
    "TE twice chunked": HEAD + CHUNKED * 2 + b"\r\n" + chunks(),
    "TE then another": HEAD + CHUNKED + b"transfer-encoding: x\r\n\r\n" + chunks(),
    "TE unknown": HEAD + b"transfer-encoding: xchunked\r\n\r\n" + chunks(),
    "TE empty": HEAD + b"transfer-encoding:\r\n\r\n" + chunks(),
    "TE with VT": HEAD + b"transfer-encoding: \x0bchunked\r\n\r\n" + chunks(),
    "TE folded": HEAD + b"transfer-encoding:\r\n chunked\r\n\r\n" + chunks(),
    "TE unknown and CL": HEAD + LENGTH + b"transfer-encoding: x\r\n\r\n" + BODY,
    "space before colon": HEAD + b"content-length : %d\r\n\r\n" % len(BODY) + BODY,
    "TE, space before colon": HEAD + LENGTH + b"transfer-encoding : chunked\r\n\r\n" + BODY,
    "folded header": HEAD + b"x-odd: a\r\n b\r\n" + LENGTH + b"\r\n" + BODY,
    "folded first header": START + b" host: x\r\n" + LENGTH + b"\r\n" + BODY,
    "bare LF": HEAD.replace(b"\r\n", b"\n") + LENGTH + b"\r\n" + BODY,
    "bare LF in a header": HEAD + b"x-odd: a\n" + LENGTH + b"\r\n" + BODY,
    "bare CR in a header": HEAD + b"x-odd: a\rcontent-length: 1\r\n" + LENGTH + b"\r\n" + BODY,
    "NUL in a header": HEAD + b"x-odd: a\0b\r\n" + LENGTH + b"\r\n" + BODY,
    "odd header name": HEAD + b"x\xff: a\r\n" + LENGTH + b"\r\n" + BODY,
    "no header name": HEAD + b": a\r\n" + LENGTH + b"\r\n" + BODY,
    "header without colon": HEAD + b"x-odd\r\n" + LENGTH + b"\r\n" + BODY,
    "odd target": HEAD.replace(b"/v1/completions", b"/v1/completions?\xff") + LENGTH + b"\r\n" + BODY,
    "NUL in the target": HEAD.replace(b"/v1/completions", b"/v1/completions\0") + LENGTH + b"\r\n" + BODY,
    "target without a path": HEAD.replace(b"/v1/completions", b"http://x") + LENGTH + b"\r\n" + BODY,
    "CONNECT": b"CONNECT x:1 HTTP/1.1\r\nhost: x:1\r\n\r\n" + HIDDEN,
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "unknown version": HEAD.replace(b"1.1", b"1.7") + LENGTH + b"\r\n" + BODY,
    "a word more": HEAD.replace(b"1.1", b"1.1 x") + LENGTH + b"\r\n" + BODY,
    "chunk size with plus": HEAD + CHUNKED + b"\r\n" + chunks(size=b"+%x" % len(BODY)),
    "chunk size with 0x": HEAD + CHUNKED + b"\r\n" + chunks(size=b"0x%x" % len(BODY)),
    "chunk size after space": HEAD + CHUNKED + b"\r\n" + chunks(size=b" %x" % len(BODY)),
    "chunk size before space": HEAD + CHUNKED + b"\r\n" + chunks(size=b"%x " % len(BODY)),
    "chunk size overflow": HEAD + CHUNKED + b"\r\n" + chunks(size=b"1%016x" % len(BODY)),
    "chunk size negative": HEAD + CHUNKED + b"\r\n" + chunks(size=b"-1"),
    "chunk longer than said": HEAD + CHUNKED + b"\r\n" + chunks(size=b"%x" % (len(BODY) - 2)) + HIDDEN,
    "chunk ends without CRLF": HEAD + CHUNKED + b"\r\n" + b"%x\r\n%bX0\r\n\r\n" % (len(BODY), BODY),
    "chunk extension ends in LF": HEAD + CHUNKED + b"\r\n" + chunks(size=b"%x;a\n" % len(BODY)),
    "trailer says a length": HEAD + CHUNKED + b"\r\n" + chunks(end=b"0\r\ncontent-length: 9\r\n\r\n"),
}
TAKEN = {
    "length": HEAD + LENGTH + b"\r\n" + BODY,
    "leading zeros": HEAD + b"content-length: 000%d\r\n\r\n" % len(BODY) + BODY,
    "empty lines before": b"\r\n\r\n" + HEAD + LENGTH + b"\r\n" + BODY,
    "chunked": HEAD + CHUNKED + b"\r\n" + chunks(),
    "Chunked": HEAD + b"Transfer-Encoding: Chunked \r\n\r\n" + chunks(),
    "chunk extensions": HEAD + CHUNKED + b"\r\n" + chunks(size=b'%X;a=b;c="d"' % len(BODY), end=b"000;x\r\n\r\n"),
    "trailers": HEAD + CHUNKED + b"\r\n" + chunks(end=b"0\r\nx-odd: a\r\nhost: evil\r\nauthorization: b\r\n\r\n"),
    "no host": START + KIND + LENGTH + b"\r\n" + BODY,
    "two hosts": HEAD + b"host: evil\r\n" + LENGTH + b"\r\n" + BODY,
    "absolute target": HEAD.replace(b"/v1/", b"http://evil:1/v1/") + LENGTH + b"\r\n" + BODY,
    "length named as of this hop": HEAD + b"connection: content-length, close\r\n" + LENGTH + b"\r\n" + BODY,
    "underscores": HEAD + b"content_length: 1\r\ntransfer_encoding: chunked\r\n" + LENGTH + b"\r\n" + BODY,
    "old": HEAD.replace(b"1.1", b"1.0") + LENGTH + b"\r\n" + BODY,
    "older": HEAD.replace(b"1.1", b"0.9") + LENGTH + b"\r\n" + BODY,
}


PIECES = st.sampled_from([b"\r\n", b"\n", b"\r\n\r\n", b" ", b":", b"0", b"\0", HIDDEN, LENGTH, CHUNKED])


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def stage(anyio_backend: str) -> AsyncIterator[tuple[Gate, Echo]]:
    async with echoing(body_timeout_s=0.3) as pair:
        yield pair


async def ask(one: Wire, word: str) -> None:
    """A proper request, which gets its own answer."""
    await one.send(request(body_of(word)))
    answer = await one.answer()
    assert answer is not None and (answer.status, answer.body) == (200, body_of(word))


@pytest.mark.parametrize("shape", REFUSED)
async def test_a_request_without_a_certain_end_is_refused_and_its_connection_closed(
    stage: tuple[Gate, Echo], shape: str
) -> None:
    gate, echo = stage
    before = len(echo.seen)
    async with wire(gate) as one, wire(gate) as other:
        await one.send(REFUSED[shape])
        answers = await one.rest()
        assert [answer.status for answer in answers] == [400]
        assert json.loads(answers[0].body)["error"]["type"] == "invalid_request_error"
        assert len(echo.seen) == before
        await ask(other, "other")


@pytest.mark.parametrize("shape", TAKEN)
async def test_whatever_it_was_a_worker_sees_one_length_and_these_bytes(stage: tuple[Gate, Echo], shape: str) -> None:
    gate, echo = stage
    before = len(echo.seen)
    async with wire(gate) as one:
        await one.send(TAKEN[shape])
        answer = await one.answer()
        assert answer is not None and (answer.status, answer.body) == (200, BODY)
    ((head, body),) = echo.seen[before:]
    assert body == BODY
    assert not echo.faults and b"evil" not in head and b"authorization" not in head


async def test_a_request_within_a_body_is_a_body(stage: tuple[Gate, Echo]) -> None:
    gate, echo = stage
    before, body = len(echo.seen), b'{"model": "m", "prompt": %b}' % json.dumps(HIDDEN.decode()).encode()
    raw = b'{"model": "m"}' + b" " * 10 + b"\r\n\r\n"
    async with wire(gate) as one:
        for each in (body, raw):
            await one.send(request(each))
            answer = await one.answer()
            assert answer is not None and answer.body == each
    assert [seen for _, seen in echo.seen[before:]] == [body, raw]


async def test_a_request_behind_another_is_answered_to_its_own_client_or_to_none(stage: tuple[Gate, Echo]) -> None:
    gate, echo = stage
    before = len(echo.seen)
    async with wire(gate) as one, wire(gate) as other:
        await one.send(request(BODY) + HIDDEN)
        await ask(other, "other")
        assert [answer.body for answer in await one.rest()] == [BODY]
    assert sorted(body for _, body in echo.seen[before:]) == sorted([BODY, body_of("other")])


@pytest.mark.parametrize("sent", [b"", START, HEAD + LENGTH + b"\r\n" + BODY[:5], HEAD + CHUNKED + b"\r\n5\r\nhel"])
async def test_half_a_request_whose_client_ends_it_is_none(stage: tuple[Gate, Echo], sent: bytes) -> None:
    gate, echo = stage
    before = len(echo.seen)
    async with wire(gate) as one:
        await ask(one, "whole")  # what comes first must not hide what comes then
        await one.send(sent)
        one.end_sending()
        assert await one.rest() == []
    await settled(gate)
    assert len(echo.seen) == before + 1


@pytest.mark.parametrize("drop", [b"a", b"1\r\na\r\n", b"1;" + b"x" * 20])
async def test_who_sends_a_little_now_and_then_is_not_waited_for(stage: tuple[Gate, Echo], drop: bytes) -> None:
    """A body of 64 kB or less has ``body_timeout_s`` in all."""
    gate, _ = stage
    head = HEAD + (b"content-length: 60000\r\n\r\n" if drop == b"a" else CHUNKED + b"\r\n")
    async with wire(gate) as one:
        await one.send(head + drop)
        answers = asyncio.create_task(one.rest())
        while not answers.done():
            await one.send(drop.removeprefix(b"1;"))
            await asyncio.sleep(0.002)  # so slow that it stays below 64 kB
        assert [answer.status for answer in await answers] == [408]
    await settled(gate)


@pytest.mark.parametrize("flood", [b"x-odd: " + b"a" * 1000 + b"\r\n", b"b" * 1000])
async def test_trailers_and_chunk_extensions_without_end_are_cut_off(stage: tuple[Gate, Echo], flood: bytes) -> None:
    gate, _ = stage
    start = b"0\r\n" if flood.endswith(b"\n") else b"1;"
    async with wire(gate) as one:
        await one.send(HEAD + CHUNKED + b"\r\n" + start, *[flood] * 200)
        assert [answer.status for answer in await one.rest()] in ([400], [])  # a reset may come before it
    await settled(gate)


async def test_a_body_in_tiny_chunks_takes_little_more_than_its_bytes(stage: tuple[Gate, Echo]) -> None:
    gate, _ = stage
    body = b'{"model": "m"' + b" " * 100_000 + b"}"
    tiny = b"".join(b"2\r\n%b\r\n" % body[at : at + 2] for at in range(0, len(body) - 1, 2)) + b"0\r\n\r\n"
    async with wire(gate) as one:
        await one.send(HEAD + CHUNKED + b"\r\n" + tiny)
        answer = await one.answer()
        assert answer is not None and answer.body == body[: len(body) // 2 * 2]


async def test_who_was_refused_hears_no_second_answer_to_the_same_request(stage: tuple[Gate, Echo]) -> None:
    gate, _ = stage
    wrong = HEAD.replace(b"application/json", b"text/plain") + CHUNKED + b"\r\n"
    async with wire(gate) as one:
        await one.send(wrong)
        first = await one.answer()
        assert first is not None and first.status == 415
        await one.send(b"nonsense\r\n")
        assert await one.rest() == []


@settings(PATIENT, max_examples=60)
@given(shape=st.sampled_from(sorted(TAKEN)), cuts=st.lists(st.integers(1, 250), max_size=12))
@example(shape="chunk extensions", cuts=list(range(1, 250)))
async def test_a_request_means_the_same_however_it_is_cut(
    stage: tuple[Gate, Echo], shape: str, cuts: list[int]
) -> None:
    gate, echo = stage
    whole = TAKEN[shape]
    edges = [0, *sorted({cut for cut in cuts if cut < len(whole)}), len(whole)]
    async with wire(gate) as one:
        await one.send(*[whole[start:end] for start, end in pairwise(edges)])
        answer = await one.answer()
    assert answer is not None and (answer.status, answer.body) == (200, BODY)
    assert not echo.faults


@settings(PATIENT, max_examples=120)
@given(
    shape=st.sampled_from(sorted(TAKEN)),
    edits=st.lists(
        st.tuples(
            st.integers(0, 250),
            st.integers(0, 4),
            st.binary(max_size=3) | PIECES,
        ),
        min_size=1,
        max_size=3,
    ),
)
async def test_a_damaged_request_harms_nobody(
    stage: tuple[Gate, Echo], shape: str, edits: list[tuple[int, int, bytes]]
) -> None:
    """Every answer is of a request of this client, once; and the other client gets its own."""
    gate, echo = stage
    damaged = TAKEN[shape]
    for at, gone, put in edits:
        damaged = damaged[:at] + put + damaged[at + gone :]
    before = len(echo.seen)
    async with wire(gate) as other, wire(gate) as one:
        await one.send(damaged)
        await ask(other, "other")
        one.end_sending()  # it may want more bytes than there are
        answers = await one.rest()
    await settled(gate)
    assert {answer.status for answer in answers} <= {200, 400, 404, 415, 418, 431}
    seen = [body for _, body in echo.seen[before:]]
    seen.remove(body_of("other"))
    for answer in answers:
        if answer.status == 200:
            seen.remove(answer.body)
    assert len(seen) <= 1  # whose client did not wait for its answer
    assert not echo.faults
