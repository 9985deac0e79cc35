"""Connections to workers, against a real server that answers with scripted bytes."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from relay.upstream.connection import HIGH_WATER, MAX_HEAD_BYTES
from relay.upstream.exchange import BadAnswer, ConnectFailed, ConnectionBroken, Exchange, UpstreamError, WorkerSilent
from relay.upstream.pool import Upstream
from tests.scripted import OK, answering, read_request, scripted
from tests.support import free_port

pytestmark = pytest.mark.anyio

HEAD = b"POST /v1/x HTTP/1.1\r\nhost: w\r\ncontent-length: 2\r\n\r\n"


class Answer:
    """A reader that keeps what comes. ``is_full``: it has no room until ``make_room``."""

    def __init__(self, *, is_full: bool = False, is_narrow: bool = False) -> None:
        self.is_full = is_full
        self.exchange: Exchange
        self.pieces: list[bytes] = []
        self.is_whole = False
        self.error: UpstreamError | None = None
        self.has_grown = asyncio.Event()
        self._is_narrow = is_narrow  # full again after each piece
        self._has_head, self._has_ended = asyncio.Event(), asyncio.Event()

    def take_head(self, exchange: Exchange) -> None:
        assert not self._has_head.is_set()
        self._has_head.set()

    def take(self, piece: bytes, last: bool) -> None:
        assert self._has_head.is_set()
        assert not self._has_ended.is_set()
        self.pieces.append(piece)
        self.has_grown.set()
        self.is_full = self._is_narrow
        if last:
            self.is_whole = True
            self._has_ended.set()

    def take_error(self, error: UpstreamError) -> None:
        assert not self._has_ended.is_set()
        self.error = error
        self._has_head.set()
        self._has_ended.set()

    def give_up(self) -> None:
        raise AssertionError("nobody is that slow here")

    def hold(self, is_held: bool) -> None:
        raise AssertionError("nothing more is sent here")

    async def head(self) -> None:
        await asyncio.wait_for(self._has_head.wait(), 5)
        if self.error is not None:
            raise self.error

    async def end(self) -> bytes:
        """The whole body. Raises UpstreamError."""
        await asyncio.wait_for(self._has_ended.wait(), 20)
        if self.error is not None:
            raise self.error
        return b"".join(self.pieces)

    async def make_room(self) -> None:
        while not self._has_ended.is_set():
            self.is_full = False
            self.exchange.deliver()
            await asyncio.sleep(0)


@asynccontextmanager
async def opened(upstream: Upstream, address: tuple[str, int], answer: Answer | None = None) -> AsyncIterator[Answer]:
    answer = answer or Answer()
    answer.exchange = upstream.open(address, HEAD, b"{}", answer)
    try:
        yield answer
    finally:
        upstream.close(answer.exchange)


async def ask(address: tuple[str, int], upstream: Upstream | None = None) -> bytes:
    async with opened(upstream or new_upstream(), address) as answer:
        return await answer.end()


def new_upstream(answer_timeout_s: float = 5) -> Upstream:
    return Upstream(connect_timeout_s=2, answer_timeout_s=answer_timeout_s)


async def test_an_answer_is_read_whole_and_its_connection_used_again() -> None:
    upstream = new_upstream()
    async with scripted(answering(OK, OK)) as (worker, address):
        for _ in range(2):
            async with opened(upstream, address) as answer:
                assert await answer.end() == b"hello"
                assert answer.exchange.status == 200
        assert worker.connections == 1
    upstream.shutdown()


async def test_connections_that_a_worker_closed_are_not_kept() -> None:
    upstream, may_close = new_upstream(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering(OK)(reader, writer)
        await may_close.wait()

    async with scripted(script) as (_, address):
        async with opened(upstream, address) as one, opened(upstream, address) as other:
            await asyncio.gather(one.end(), other.end())
        kept = [weakref.ref(each) for each in upstream._idle[address]]
        assert len(kept) == 2
        del one, other
        may_close.set()
        async with asyncio.timeout(5):
            while not all(each() is None or each().closed for each in kept):  # type: ignore[union-attr]
                await asyncio.sleep(0.001)
        gc.collect()  # readers and exchanges know each other here
        assert [each() for each in kept] == [None] * len(kept)
    upstream.shutdown()


async def test_a_chunked_answer_comes_piece_by_piece() -> None:
    go_on = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        await go_on.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

    async with scripted(script) as (_, address), opened(new_upstream(), address) as answer:
        await asyncio.wait_for(answer.has_grown.wait(), 5)
        assert answer.pieces == [b"one"]
        go_on.set()
        assert await answer.end() == b"onetwo"


async def test_a_slow_client_gets_all_of_it_too() -> None:
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n" + b"x" * 300_000
    slow = Answer(is_full=True, is_narrow=True)
    async with scripted(answering(whole)) as (_, address), opened(new_upstream(), address, slow) as answer:
        reading = asyncio.create_task(slow.make_room())
        assert len(await answer.end()) == 300_000
        await reading


async def test_a_slow_client_gets_what_came_before_a_break() -> None:
    broken = b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello"
    slow = Answer(is_full=True)
    async with scripted(answering(broken)) as (worker, address), opened(new_upstream(), address, slow) as answer:
        await answer.head()
        await asyncio.wait_for(worker.closed.wait(), 5)
        assert answer.pieces == []
        await slow.make_room()
        assert answer.pieces == [b"hello"]
        assert isinstance(answer.error, ConnectionBroken)


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async with scripted(answering(b"HTTP/1.1 200 OK\r\n\r\nbody")) as (_, address):
        assert await ask(address) == b"body"


async def test_an_interim_answer_is_skipped() -> None:
    async with scripted(answering(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)) as (_, address):
        assert await ask(address) == b"hello"


async def test_a_worker_that_is_not_there_refuses() -> None:
    with pytest.raises(ConnectFailed) as caught:
        await ask(("127.0.0.1", free_port()))
    assert caught.value.refused


async def test_a_pooled_connection_that_the_worker_closed_is_replaced() -> None:
    upstream = new_upstream()
    async with scripted(answering(OK)) as (worker, address):
        for _ in range(3):
            assert await ask(address, upstream) == b"hello"
        assert worker.connections == 3


async def test_a_connection_closed_before_the_answer_is_broken() -> None:
    async with scripted(answering(b"")) as (_, address):
        with pytest.raises(ConnectionBroken):
            await ask(address)


async def test_a_connection_closed_within_the_answer_is_broken() -> None:
    broken = b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello"
    async with scripted(answering(broken)) as (_, address), opened(new_upstream(), address) as answer:
        with pytest.raises(ConnectionBroken):
            await answer.end()
        assert b"".join(answer.pieces) == b"hello"
        assert not answer.is_whole


@pytest.mark.parametrize("garbage", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\x00\x01\x02\x03" * 10])
async def test_what_is_no_http_is_a_bad_answer(garbage: bytes) -> None:
    async with scripted(answering(garbage)) as (_, address):
        with pytest.raises(BadAnswer):
            await ask(address)


async def test_endless_headers_are_cut_off() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x-filler: " + b"x" * 1000 + b"\r\n")
            await writer.drain()

    async with scripted(script) as (_, address):
        with pytest.raises(BadAnswer, match=str(MAX_HEAD_BYTES)):
            await ask(address)


async def test_a_worker_that_says_nothing_is_given_up() -> None:
    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read()

    async with scripted(script) as (worker, address):
        with pytest.raises(WorkerSilent):
            await ask(address, new_upstream(answer_timeout_s=0.05))
        await asyncio.wait_for(worker.closed.wait(), 5)


async def test_closing_an_exchange_before_its_end_closes_the_connection() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        await reader.read()

    async with scripted(script) as (worker, address):
        async with opened(new_upstream(), address) as answer:
            await asyncio.wait_for(answer.has_grown.wait(), 5)
        await asyncio.wait_for(worker.closed.wait(), 5)
        assert answer.error is None


async def test_closing_while_the_worker_thinks_closes_the_connection() -> None:
    asked = asyncio.Event()

    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await read_request(reader)
        asked.set()
        await reader.read()

    async with scripted(script) as (worker, address):
        async with opened(new_upstream(), address) as answer:
            await asked.wait()
        await asyncio.wait_for(worker.closed.wait(), 5)
        assert answer.error is None


async def test_closing_while_connecting_sends_nothing() -> None:
    upstream = new_upstream()
    async with scripted(answering(OK)) as (worker, address):
        async with opened(upstream, address):
            pass
        assert await ask(address, upstream) == b"hello"
        assert worker.connections == 1


async def test_an_unread_answer_is_held_back_at_the_worker() -> None:
    """Memory for a client that does not read is bounded: the worker's writes stop."""
    size = 32 * 1024 * 1024
    sent = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    slow = Answer(is_full=True)
    async with scripted(script) as (_, address), opened(new_upstream(), address, slow) as answer:
        stalled, last = 0, -1
        while stalled < 50:  # until nothing moves any more
            await asyncio.sleep(0.002)
            stalled, last = (stalled + 1, last) if sent == last else (0, sent)
        assert sent < size
        assert answer.exchange.buffered <= HIGH_WATER + 1024 * 1024
        await slow.make_room()
        assert len(await answer.end()) == size


async def test_a_worker_that_talks_unasked_loses_its_connection() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await writer.drain()
        writer.write(OK)
        await reader.read()

    upstream = new_upstream()
    async with scripted(script) as (worker, address):
        assert await ask(address, upstream) == b"hello"
        await asyncio.wait_for(worker.closed.wait(), 5)
        assert await ask(address, upstream) == b"hello"
        assert worker.connections == 2
