"""Both ends of the relay in bytes: clients that send what they like, a worker that tells what it got, what is left."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httptools

from tests.relay_double import MODEL, Gate, door
from tests.scripted import scripted

LIMIT_S = 10.0
"""A test that waits longer has found a hang."""


class Answer(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Answers:
    """Reads a connection's answers, interim ones left out, and fails on a byte that is none of theirs."""

    def __init__(self) -> None:
        self.whole: list[Answer] = []
        self._headers: dict[bytes, bytes] = {}
        self._body = bytearray()
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, piece: bytes) -> None:
        self._parser.feed_data(piece)

    def on_message_begin(self) -> None:
        self._headers, self._body = {}, bytearray()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            self.whole.append(Answer(self._parser.get_status_code(), self._headers, bytes(self._body)))


class Wire:
    """A client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.answers = Answers()
        self._taken = 0

    async def send(self, *pieces: bytes) -> None:
        """Each piece in a write of its own. Who closed meanwhile does not get them."""
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                self.writer.write(piece)
                await self.writer.drain()
                await asyncio.sleep(0)

    async def answer(self) -> Answer | None:
        """The next whole answer; None when the connection has ended without one."""
        async with asyncio.timeout(LIMIT_S):
            while len(self.answers.whole) == self._taken:
                if not await self._read():
                    return None
        self._taken += 1
        return self.answers.whole[self._taken - 1]

    async def rest(self) -> list[Answer]:
        """All further answers, until the other side closes."""
        async with asyncio.timeout(LIMIT_S):
            while await self._read():
                pass
        rest, self._taken = self.answers.whole[self._taken :], len(self.answers.whole)
        return rest

    def end_sending(self) -> None:
        with contextlib.suppress(OSError):
            self.writer.write_eof()

    async def _read(self) -> bool:
        try:
            piece = await self.reader.read(65536)
        except ConnectionError:
            return False
        if piece:
            self.answers.feed(piece)
        return bool(piece)


@asynccontextmanager
async def connection(gate: Gate) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def wire(gate: Gate) -> AsyncIterator[Wire]:
    async with connection(gate) as ends:
        yield Wire(*ends)


class Echo:
    """A worker that answers with the body it got, and keeps what came. It takes a head and its length as they stand:
    what is beyond them would show up as another request.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[bytes, bytes]] = []
        self.faults: list[str] = []

    async def script(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            try:
                length = length_in(head)
            except AssertionError as fault:
                self.faults.append(str(fault))
                return
            body = await reader.readexactly(length)
            self.seen.append((head, body))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))


def length_in(head: bytes) -> int:
    """The one length of a request as it may reach a worker."""
    lines = head.lower().split(b"\r\n")
    assert lines[0].startswith(b"post /") and lines[0].endswith(b" http/1.1"), head
    assert not any(b"\r" in line or b"\n" in line or b"\0" in line for line in lines), head
    names = [line.partition(b":")[0] for line in lines[1:-2]]
    assert names.count(b"content-length") == 1 and b"transfer-encoding" not in names, head
    assert names.count(b"host") == 1 and all(name.strip() == name != b"" for name in names), head
    return int(next(line[15:] for line in lines if line.startswith(b"content-length:")))


@asynccontextmanager
async def echoing(**settings: Any) -> AsyncIterator[tuple[Gate, Echo]]:
    """A door with one worker that echoes, and nothing left when it closes."""
    echo = Echo()
    async with nothing_left(), door(**settings) as gate, scripted(echo.script) as (_, address):
        gate.add("w", address)
        yield gate, echo
        await settled(gate)
        assert not echo.faults


async def settled(gate: Gate) -> None:
    """Waits until nothing is under way, and fails if that does not come."""
    upstream = gate.upstream
    try:
        async with asyncio.timeout(LIMIT_S):
            while gate.relay._flights or gate.router.in_flight or upstream._open or upstream._connecting:
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"left over: {gate.router.in_flight} {upstream._open} {upstream._connecting}") from None
    assert not gate.lobby.admission.is_anyone_waiting


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """No task outlives what is within."""
    before = all_tasks()
    yield
    try:
        async with asyncio.timeout(LIMIT_S):
            while all_tasks() - before:
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"left over: {all_tasks() - before}") from None


def all_tasks() -> set[asyncio.Task[Any]]:
    """But for anyio's own, of which each fixture and test has one."""
    return {task for task in asyncio.all_tasks() if "TestRunner" not in repr(task.get_coro())}


def request(body: bytes, *more: bytes, route: bytes = b"/v1/completions", kind: bytes = b"application/json") -> bytes:
    lines = [b"POST %b HTTP/1.1" % route, b"host: x", b"content-type: " + kind, *more]
    return b"\r\n".join([*lines, b"content-length: %d" % len(body), b"", body])


def body_of(word: str, model: str = MODEL) -> bytes:
    return b'{"model": "%b", "prompt": "%b"}' % (model.encode(), word.encode())
