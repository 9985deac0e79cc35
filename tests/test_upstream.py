"""Connections to workers, against a real server that answers with scripted bytes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from relay.exchange import (
    HIGH_WATER,
    MAX_HEAD_BYTES,
    BadAnswer,
    ConnectFailed,
    ConnectionBroken,
    Exchange,
    WorkerSilent,
)
from relay.upstream import Upstream
from tests.scripted import OK, answering, read_request, scripted
from tests.support import free_port

pytestmark = pytest.mark.anyio

HEAD = b"POST /v1/x HTTP/1.1\r\nhost: w\r\ncontent-length: 2\r\n\r\n"


@asynccontextmanager
async def opened(upstream: Upstream, address: tuple[str, int]) -> AsyncIterator[Exchange]:
    exchange = await upstream.open(address, HEAD, b"{}")
    try:
        yield exchange
    finally:
        upstream.close(exchange)


def new_upstream(answer_timeout_s: float = 5) -> Upstream:
    return Upstream(connect_timeout_s=2, answer_timeout_s=answer_timeout_s)


class Pieces:
    """A sink that has room for everything, or for nothing more until ``drain``."""

    def __init__(self, *, is_full: bool = False) -> None:
        self.pieces: list[bytes] = []
        self.is_full = is_full
        self.is_whole = False
        self.grew = asyncio.Event()

    def push(self, piece: bytes, last: bool) -> None:
        assert not self.is_whole
        self.pieces.append(piece)
        self.is_whole = last
        self.grew.set()

    def give_up(self) -> None:
        raise AssertionError("nobody is that slow here")

    async def drain(self) -> None:
        await asyncio.sleep(0)
        self.is_full = False


async def read_all(exchange: Exchange) -> bytes:
    sink = Pieces()
    await exchange.send_to(sink)
    assert sink.is_whole
    return b"".join(sink.pieces)


async def first_piece(exchange: Exchange) -> bytes:
    """Leaves the exchange before its end, as a request does whose client goes away."""
    sink = Pieces()
    sending = asyncio.create_task(exchange.send_to(sink))
    await asyncio.wait_for(sink.grew.wait(), 5)
    sending.cancel()
    await asyncio.wait([sending])
    return sink.pieces[0]


async def test_an_answer_is_read_whole_and_its_connection_used_again() -> None:
    upstream = new_upstream()
    async with scripted(answering(OK, OK)) as (worker, address):
        for _ in range(2):
            async with opened(upstream, address) as exchange:
                assert exchange.status == 200
                assert (b"content-length", b"5") in exchange.headers
                assert await read_all(exchange) == b"hello"
        assert worker.connections == 1
    upstream.shutdown()


async def test_a_chunked_answer_comes_piece_by_piece() -> None:
    go_on = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        await go_on.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

    upstream = new_upstream()
    async with scripted(script) as (_, address), opened(upstream, address) as exchange:
        sink = Pieces()
        sending = asyncio.create_task(exchange.send_to(sink))
        await sink.grew.wait()
        assert sink.pieces == [b"one"]
        go_on.set()
        await sending
        assert b"".join(sink.pieces) == b"onetwo"


async def test_a_slow_client_gets_all_of_it_too() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n" + b"x" * 300_000

    class Narrow(Pieces):
        def push(self, piece: bytes, last: bool) -> None:
            super().push(piece, last)
            self.is_full = True

    async with scripted(answering(answer)) as (_, address), opened(new_upstream(), address) as exchange:
        sink = Narrow(is_full=True)
        await exchange.send_to(sink)
        assert len(b"".join(sink.pieces)) == 300_000


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    upstream = new_upstream()
    async with (
        scripted(answering(b"HTTP/1.1 200 OK\r\n\r\nbody")) as (_, address),
        opened(upstream, address) as exchange,
    ):
        assert await read_all(exchange) == b"body"


async def test_an_interim_answer_is_skipped() -> None:
    upstream = new_upstream()
    answer = b"HTTP/1.1 100 Continue\r\n\r\n" + OK
    async with scripted(answering(answer)) as (_, address), opened(upstream, address) as exchange:
        assert exchange.status == 200
        assert await read_all(exchange) == b"hello"


async def test_a_worker_that_is_not_there_refuses() -> None:
    with pytest.raises(ConnectFailed) as caught:
        await new_upstream().open(("127.0.0.1", free_port()), HEAD, b"{}")
    assert caught.value.refused


async def test_a_pooled_connection_that_the_worker_closed_is_replaced() -> None:
    upstream = new_upstream()
    async with scripted(answering(OK)) as (worker, address):
        for _ in range(3):
            async with opened(upstream, address) as exchange:
                assert await read_all(exchange) == b"hello"
        assert worker.connections == 3


async def test_a_connection_closed_before_the_answer_is_broken() -> None:
    async with scripted(answering(b"")) as (_, address):
        with pytest.raises(ConnectionBroken):
            await new_upstream().open(address, HEAD, b"{}")


async def test_a_connection_closed_within_the_answer_is_broken() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello"
    async with scripted(answering(answer)) as (_, address), opened(new_upstream(), address) as exchange:
        sink = Pieces()
        with pytest.raises(ConnectionBroken):
            await exchange.send_to(sink)
        assert b"".join(sink.pieces) == b"hello"
        assert not sink.is_whole


@pytest.mark.parametrize("garbage", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\x00\x01\x02\x03" * 10])
async def test_what_is_no_http_is_a_bad_answer(garbage: bytes) -> None:
    async with scripted(answering(garbage)) as (_, address):
        with pytest.raises(BadAnswer):
            await new_upstream().open(address, HEAD, b"{}")


async def test_endless_headers_are_cut_off() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x-filler: " + b"x" * 1000 + b"\r\n")
            await writer.drain()

    async with scripted(script) as (_, address):
        with pytest.raises(BadAnswer, match=str(MAX_HEAD_BYTES)):
            await new_upstream().open(address, HEAD, b"{}")


async def test_a_worker_that_says_nothing_is_given_up() -> None:
    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read()

    async with scripted(script) as (worker, address):
        with pytest.raises(WorkerSilent):
            await new_upstream(answer_timeout_s=0.05).open(address, HEAD, b"{}")
        await asyncio.wait_for(worker.closed.wait(), 5)


async def test_closing_an_exchange_before_its_end_closes_the_connection() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        await reader.read()

    upstream = new_upstream()
    async with scripted(script) as (worker, address):
        async with opened(upstream, address) as exchange:
            assert await first_piece(exchange) == b"one"
        await asyncio.wait_for(worker.closed.wait(), 5)


async def test_cancelling_while_the_worker_thinks_closes_the_connection() -> None:
    asked = asyncio.Event()

    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await read_request(reader)
        asked.set()
        await reader.read()

    async with scripted(script) as (worker, address):
        task = asyncio.create_task(new_upstream().open(address, HEAD, b"{}"))
        await asked.wait()
        task.cancel()
        await asyncio.wait_for(worker.closed.wait(), 5)
        assert (await asyncio.gather(task, return_exceptions=True))[0].__class__ is asyncio.CancelledError


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

    upstream = new_upstream()
    async with scripted(script) as (_, address), opened(upstream, address) as exchange:
        stalled, last = 0, -1
        while stalled < 50:  # until nothing moves any more
            await asyncio.sleep(0.002)
            stalled, last = (stalled + 1, last) if sent == last else (0, sent)
        assert sent < size
        assert exchange.buffered <= HIGH_WATER + 1024 * 1024
        assert len(await read_all(exchange)) == size


async def test_a_worker_that_talks_unasked_loses_its_connection() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await writer.drain()
        writer.write(OK)
        await reader.read()

    upstream = new_upstream()
    async with scripted(script) as (worker, address):
        async with opened(upstream, address) as exchange:
            assert await read_all(exchange) == b"hello"
        await asyncio.wait_for(worker.closed.wait(), 5)
        async with opened(upstream, address) as exchange:
            assert await read_all(exchange) == b"hello"
        assert worker.connections == 2
