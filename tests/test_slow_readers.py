"""Clients that do not read: what waits for them is bounded, their workers wait too, and nobody else does."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from relay.upstream.connection import HIGH_WATER
from tests.relay_double import Gate, door
from tests.scripted import read_request, scripted
from tests.wire import body_of, nothing_left, request, settled, wire

pytestmark = pytest.mark.anyio

STREAMS = 100
ONE_READ = 256 * 1024
"""As much as uvloop reads at once."""
KEPT_KB = 64
PIECE = 64 * 1024 - 1
EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": "%b"}}]}\n\n' % (b"x" * 8000)
STREAM = b'{"model": "m", "stream": true, "prompt": "x"}'


class Flood:
    """A worker that answers streams with events for as long as they are taken, and all else by its body."""

    def __init__(self) -> None:
        self.sent = 0
        self.streams = 0
        self.ended = 0
        self.go = asyncio.Event()

    async def script(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)
        while True:
            body = (await read_request(reader)).partition(b"\r\n\r\n")[2]
            if body == STREAM:
                break
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        self.streams += 1
        try:
            await self.go.wait()
            await self._flood(writer)
        finally:
            self.ended += 1

    async def _flood(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
            await writer.drain()
            self.sent += len(EVENT)


@asynccontextmanager
async def deaf_clients(gate: Gate) -> AsyncIterator[None]:
    """Many that ask for a stream and read nothing of it."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        for _ in range(STREAMS):
            deaf = stack.enter_context(socket.socket())
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            await loop.sock_connect(deaf, ("127.0.0.1", gate.port))
            await loop.sock_sendall(deaf, request(STREAM))
        yield


async def start(flood: Flood, gate: Gate) -> None:
    """Once all have asked. The system's own buffers are made small: it is not they that are tested."""
    async with asyncio.timeout(20):
        while flood.streams < STREAMS:
            await asyncio.sleep(0.005)
    for flight in gate.relay._flights.values():
        flight.call.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)
    flood.go.set()


async def stalled(flood: Flood) -> None:
    """Until nothing moves any more."""
    quiet, last = 0, -1
    async with asyncio.timeout(20):
        while quiet < 40:
            await asyncio.sleep(0.005)
            quiet, last = (quiet + 1, last) if flood.sent == last else (0, flood.sent)


def check_bounds(gate: Gate) -> None:
    exchanges = list(gate.upstream._open)
    assert len(exchanges) == STREAMS
    for exchange in exchanges:
        assert exchange.connection is not None and exchange.connection.is_paused
        assert exchange.buffered <= HIGH_WATER + ONE_READ
    for flight in gate.relay._flights.values():
        assert flight.call.is_full
        assert flight.call.transport.get_write_buffer_size() <= HIGH_WATER + 2 * ONE_READ
        assert flight.tape is not None
        assert sum(map(len, flight.tape.passed)) <= KEPT_KB * 1024 + HIGH_WATER + 2 * ONE_READ


async def test_many_who_do_not_read_hold_back_their_workers_and_nobody_else() -> None:
    flood = Flood()
    async with nothing_left(), door(resume_kb=KEPT_KB) as gate, scripted(flood.script) as (_, address):
        gate.add("w", address)
        async with deaf_clients(gate):
            await start(flood, gate)
            await stalled(flood)
            check_bounds(gate)
            before = flood.sent
            async with wire(gate) as other:
                for number in range(20):
                    await other.send(request(body_of(f"{number}")))
                    answer = await other.answer()
                    assert answer is not None and answer.body == body_of(f"{number}")
            assert flood.sent == before
        # They have gone, without a word of what was sent to them: so has all that was kept for them.
        await settled(gate)
        assert not gate.relay._flights
        async with asyncio.timeout(5):
            while flood.ended < STREAMS:
                await asyncio.sleep(0.001)


async def test_one_who_reads_at_last_gets_all_in_order() -> None:
    size, sent = 200 * PIECE, asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for number in range(size // PIECE):
            writer.write(b"%x" % (number % 16) * PIECE)
            await writer.drain()
        sent.set()

    async with nothing_left(), door() as gate, scripted(script) as (_, address):
        gate.add("w", address)
        async with wire(gate) as one:
            await one.send(request(STREAM))
            while not any(exchange.buffered for exchange in gate.upstream._open) and not sent.is_set():
                await asyncio.sleep(0.001)
            answer = await one.answer()
            assert answer is not None
            assert answer.body == b"".join(b"%x" % (number % 16) * PIECE for number in range(size // PIECE))
        await settled(gate)
