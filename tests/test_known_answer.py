"""Answers whose heads repeat: read as the parser would, or left to it."""

import asyncio
import gc
import weakref

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.call import Call
from relay.headers import Header, to_client
from relay.upstream.connection import MAX_LEARNED, Connection
from relay.upstream.exchange import Exchange, UpstreamError
from relay.upstream.known_answer import KnownAnswer
from tests.doubles import PATIENT
from tests.upstream_double import Wire

DATE = b"date: Sat, 31 Jan 2026 12:00:%02d GMT"
FIXED = (b"Server: uvicorn", b"content-type: application/json", b"x-request-id: 1", b"x-own: a: b")


def answer(body: bytes = b"{}", *more: bytes, second: int = 0, status: bytes = b"200 OK", length: int = -1) -> bytes:
    length = len(body) if length < 0 else length
    head = (b"HTTP/1.1 " + status, DATE % second, *FIXED, *more, b"Content-Length: %d" % length)
    return b"\r\n".join(head) + b"\r\n\r\n" + body


class Listener:
    """A reader that notes what it is told."""

    is_full = False

    def __init__(self) -> None:
        self.told: list[object] = []
        self.is_known = False

    def take_head(self, exchange: Exchange) -> None:
        self.is_known = exchange.written is not None
        self.told.append((exchange.status, sorted(exchange.headers)))

    def take(self, piece: bytes, last: bool) -> None:
        self.told.append((piece, last))

    def take_error(self, error: UpstreamError) -> None:
        self.told.append(str(error))

    def give_up(self) -> None: ...

    def hold(self, is_held: bool) -> None: ...


class Worker:
    """A connection on which each exchange is answered by reads."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, learns: bool) -> None:
        self.wire = Wire()
        self.connection = Connection(loop, lambda _: None, lambda _: None)
        self.connection.connection_made(self.wire)
        self.connection._learns = MAX_LEARNED if learns else 0

    def ask(self, *reads: bytes) -> Listener:
        listener = Listener()
        exchange = Exchange(("w", 1), b"", b"", listener, lambda *_: False)
        self.connection.send(exchange)
        for read in reads:
            self.connection.data_received(read)
        self.connection.release(exchange)
        return listener


def content_of(listener: Listener) -> list[object]:
    """The length is no longer in the headers of a known answer."""
    kept: list[object] = []
    for said in listener.told:
        match said:
            case (int() as status, list() as headers):
                kept.append((status, [header for header in headers if header[0] != b"content-length"]))
            case _:
                kept.append(said)
    return kept


ANSWERS = [
    answer(), answer(b"[1, 2]"), answer(b"x" * 1000, second=7), answer(b""), answer(b"{}", b"x-more: 1"),
    answer(b"{}", b"connection: close"), answer(b"{}", b"Connection: keep-alive"), answer(status=b"404 Not Found"),
    answer(b"no", status=b"500 Oh"), answer(b"a" * 10, length=5), answer(b"", b"x: " + b"y" * 100),
    answer(b"{}").replace(b"GMT", b"UTC+1"), answer(b"{}").replace(b"Content-Length", b"content-length"),
    answer(b"{}").replace(b"application/json", b"text/event-stream"), answer(b"{}", b"content-length: 2"),
    answer(b"{}", DATE % 3), answer(b"{}", b"x-folded: a\r\n b"), answer(b"{}", b"x-wide:   a"),
    answer(b"{}", b"x-empty:"),
    answer(b"5\r\nhello\r\n0\r\n\r\n").replace(b"Content-Length: 15", b"transfer-encoding: chunked"),
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    b"HTTP/1.1 100 Continue\r\n\r\n" + answer(), b"HTTP/1.1 204 No Content\r\n\r\n", b"garbage\r\n\r\n",
    answer().replace(b"\r\n", b"\n"), answer(b"{}", length=99),
]  # fmt: skip


@PATIENT
@given(st.lists(st.tuples(st.sampled_from(ANSWERS), st.integers(0, 300)), max_size=12))
@example([(answer(), 0), (answer(second=1), 0), (answer(b"a" * 10, length=5), 0)])
@example([(answer(), 0), (answer(second=1) + answer(second=2), 0)])
@example([(answer(), 0), (answer(second=1)[:-1] + b"\r\n\r\n", 0)])
def test_a_known_answer_is_what_the_parser_says(asked: list[tuple[bytes, int]]) -> None:
    loop = asyncio.new_event_loop()
    try:
        learned, plain = Worker(loop, learns=True), Worker(loop, learns=False)
        for whole, cut in asked:
            reads = [read for read in (whole[:cut], whole[cut:]) if read] if cut % 3 == 0 else [whole]
            assert content_of(learned.ask(*reads)) == content_of(plain.ask(*reads))
            assert learned.wire.is_cut == plain.wire.is_cut
            if plain.wire.is_cut:  # as the pool does it
                return
    finally:
        loop.close()


@pytest.mark.parametrize("whole", ANSWERS)
def test_an_answer_that_comes_again_is_the_same_again(whole: bytes) -> None:
    check_alike([whole], [whole], [whole])


DATED = b"Sat, 31 Jan 2026 12:00:00 GMT"
FILL = b"x" * 28


@pytest.mark.parametrize(
    "reads",
    [
        [b"HTTP/1.1 200 OK\r\nx: ", answer()],
        [b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(answer()), answer()],
        [b"HTTP/1.1 100 Continue\r\n\r\n", answer()],
        *([answer().replace(DATED, date)] for date in (b"\0" + FILL, b" " * 29, FILL + b" ", b"\t" + FILL)),
    ],
    ids=["in a head", "in a body", "behind another", "NUL", "spaces", "space", "tab"],
)  # fmt: skip
def test_what_only_looks_like_a_known_answer_is_left_to_the_parser(reads: list[bytes]) -> None:
    check_alike([answer()], reads)


def check_alike(*asked: list[bytes]) -> None:
    """What each request is answered, by reads, is the same with a memory for heads and without."""
    loop = asyncio.new_event_loop()
    try:
        learned, plain = Worker(loop, learns=True), Worker(loop, learns=False)
        for reads in asked:
            assert content_of(learned.ask(*reads)) == content_of(plain.ask(*reads))
            assert learned.wire.is_cut == plain.wire.is_cut
            if plain.wire.is_cut:
                return
    finally:
        loop.close()


def test_a_stream_is_not_learned_for_it_must_be_judged() -> None:
    loop = asyncio.new_event_loop()
    worker = Worker(loop, learns=True)
    stream = answer(b"data: {}\n\n").replace(b"application/json", b"text/event-stream")
    assert not any(worker.ask(stream).is_known for _ in range(3))
    loop.close()


def test_only_the_date_and_the_length_may_differ() -> None:
    loop = asyncio.new_event_loop()
    worker = Worker(loop, learns=True)
    known = [
        worker.ask(answer(b"x" * size, second=second)).is_known for size, second in ((2, 0), (2, 0), (1000, 9), (0, 3))
    ]
    assert known == [False, True, True, True]
    assert not worker.ask(answer().replace(b"uvicorn", b"unicorn")).is_known
    assert worker.ask(answer().replace(b"uvicorn", b"unicorn")).is_known
    loop.close()


def test_a_worker_whose_heads_all_differ_is_not_learned_from_for_ever() -> None:
    loop = asyncio.new_event_loop()
    worker = Worker(loop, learns=True)
    for number in range(MAX_LEARNED + 5):
        assert not worker.ask(answer(b"{}", b"x-id: %d" % number)).is_known
    assert not worker.ask(answer(b"{}", b"x-id: %d" % (MAX_LEARNED + 4))).is_known
    loop.close()


@pytest.mark.parametrize("keep_alive", [True, False])
def test_its_head_is_written_as_any_other(keep_alive: bool) -> None:
    body = b'{"a": 1}'
    headers: list[Header] = [
        (b"date", b"Sat, 31 Jan 2026 12:00:00 GMT"), (b"server", b"uvicorn"), (b"content-type", b"application/json"),
        (b"x-request-id", b"1"), (b"x-own", b"a: b"),
    ]  # fmt: skip
    known = KnownAnswer.of(answer(body), [*headers, (b"content-length", b"8")])
    assert known is not None
    found = known.read(answer(body))
    assert found is not None
    heads = []
    for is_known in (True, False):
        wire = Wire()
        call = Call(wire, lambda: None, lambda _: None, "/v1/x", b"/v1/x", [], 1000)
        call.keep_alive = keep_alive
        if is_known:
            call.start_whole(found[1] + b"x-ichat: 1\r\n", len(found[2]))
        else:
            call.start(200, to_client([*headers, (b"content-length", b"8")]), b"x-ichat: 1\r\n")
        call.push(body, last=True)
        assert call.response_complete
        assert call.keep_alive == keep_alive
        head, _, sent = wire.heard.partition(b"\r\n\r\n")
        assert sent == body
        heads.append(sorted(head.split(b"\r\n")))
    assert heads[0] == heads[1]
    assert not any(line.startswith((b"server", b"x-request-id")) for line in heads[0])


def test_a_lost_connection_is_no_cycle_for_the_garbage_collector() -> None:
    loop = asyncio.new_event_loop()
    connection = Connection(loop, lambda _: None, lambda _: None)
    connection.connection_made(Wire())
    seen = weakref.ref(connection)
    gc.disable()
    try:
        connection.connection_lost(None)
        del connection
        assert seen() is None
    finally:
        gc.enable()
        loop.close()
