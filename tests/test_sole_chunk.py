"""Chunks that come alone in a read: passed as they are, and never anything else in their place."""

import asyncio

from hypothesis import example, given
from hypothesis import strategies as st

from relay.upstream.connection import Connection
from relay.upstream.exchange import Exchange, UpstreamError
from relay.upstream.sole_chunk import HEADS, MAX_READ_BYTES, NO_HEAD
from tests.doubles import PATIENT
from tests.upstream_double import Wire

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
ADDRESS = ("w", 1)


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Listener:
    """A reader; with ``is_quick`` one that takes whole chunks, as a stream's does."""

    is_full = False

    def __init__(self, *, is_quick: bool) -> None:
        self.is_quick = is_quick
        self.heard = b""
        self.quick = 0
        self.is_whole = False
        self.error = ""

    def take_head(self, exchange: Exchange) -> None:
        if self.is_quick:
            exchange.shortcut = self.ride

    def ride(self, read: bytes) -> bool:
        assert not self.is_whole
        assert not self.error
        head = HEADS[len(read)] if len(read) < MAX_READ_BYTES else NO_HEAD
        if not read.startswith(head) or read[-2:] != b"\r\n":
            return False
        self.heard += read[len(head) : -2]
        self.quick += 1
        return True

    def take(self, piece: bytes, last: bool) -> None:
        assert not self.is_whole
        self.heard += piece
        self.is_whole = last

    def take_error(self, error: UpstreamError) -> None:
        self.error = str(error)

    def give_up(self) -> None: ...

    def hold(self, is_held: bool) -> None: ...


def play(reads: list[bytes], *, is_quick: bool) -> Listener:
    listener = Listener(is_quick=is_quick)
    loop = asyncio.new_event_loop()
    try:
        connection = Connection(loop, lambda _: None, lambda _: None)
        connection.connection_made(Wire())
        connection.send(Exchange(ADDRESS, b"", b"", listener, lambda *_: False))
        for read in reads:
            if not (listener.error or listener.is_whole):
                connection.data_received(read)
    finally:
        loop.close()
    return listener


def test_a_chunk_is_known_by_its_length() -> None:
    for size in range(1, MAX_READ_BYTES - 7):
        chunk = framed(b"x" * size)
        assert chunk.startswith(HEADS[len(chunk)])
    # No chunk is so long: one digit more in its head takes a byte.
    assert [size for size, head in enumerate(HEADS) if head is NO_HEAD] == [0, 1, 2, 3, 4, 5, 21, 262]


def test_all_but_the_first_and_the_last_are_passed_unparsed() -> None:
    texts = [b"%d" % number * (number % 300 + 1) for number in range(200)]
    listener = play([HEAD, *map(framed, texts), END], is_quick=True)
    assert (listener.heard, listener.quick, listener.is_whole) == (b"".join(texts), 199, True)


def test_a_worker_whose_chunks_pass_unparsed_is_not_silent() -> None:
    listener, loop = Listener(is_quick=True), asyncio.new_event_loop()
    connection = Connection(loop, lambda _: None, lambda _: None)
    connection.connection_made(Wire())
    exchange = Exchange(ADDRESS, b"", b"", listener, lambda *_: False)
    connection.send(exchange)
    connection.data_received(HEAD + framed(b"x"))
    for _ in range(10):
        exchange.measure_silence(0.5, 1)
        connection.data_received(framed(b"y"))
    loop.close()
    assert (listener.quick, listener.error) == (10, "")


WORDS = [b"data: x\n\n", b"\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"a" * 15, b"b" * 16, b"c" * 255, b"d" * 256, b"1"]
ODD = [b"5\r\nhel", b"6\r\nhello\r\n", b"5;a=b\r\nhello\r\n", b"05\r\nhello\r\n", b"5\r\nhelloXX", b"\r\n", b"zz\r\n",
       b"0\r\n", b"0\r\na: b\r\n", b"0\r\na: 5\r\nhello\r\n", b"A\r\n0123456789\r\n", b"5", b"f\r\n", END]  # fmt: skip


@PATIENT
@given(
    st.lists(st.one_of(st.sampled_from(WORDS).map(framed), st.sampled_from(ODD)), max_size=12),
    st.lists(st.integers(0, 400), max_size=6),
    st.booleans(),
)
@example([framed(b"x"), b"5", b"\r\nhello\r\n"], [], False)
@example([framed(b"x"), b"f", framed(b"x" * 15)], [], False)
@example([framed(b"x"), b"0\r\n", framed(b"hello")], [], False)
@example([framed(b"x"), b"f", framed(b"x" * 15)], [1], False)
@example([framed(b"x"), b"14\r\n", framed(b"x" * 15)], [1], False)
def test_any_reads_mean_the_same_with_and_without(parts: list[bytes], cuts: list[int], is_whole: bool) -> None:
    reads = [HEAD, *parts, *([END] if is_whole else [])]
    for cut in cuts:  # a read that ends within a chunk, and one that holds several
        at = cut % len(reads)
        if cut % 2 and at + 1 < len(reads):
            reads[at : at + 2] = [reads[at] + reads[at + 1]]
        else:
            half = cut % max(1, len(reads[at]))
            reads[at : at + 1] = [read for read in (reads[at][:half], reads[at][half:]) if read]
    plain, quick = play(reads, is_quick=False), play(reads, is_quick=True)
    assert quick.is_whole == plain.is_whole
    assert quick.error == plain.error
    assert quick.heard == plain.heard
