"""Workers of raw bytes: a server on a free port whose every connection runs a script."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class ScriptedWorker:
    """A server whose every connection runs ``script``; counts its connections and sees them close."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.connections = 0
        self.closed = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self.script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the other side has gone, as some tests mean it to
        finally:
            self.closed.set()
            writer.close()


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[tuple[ScriptedWorker, tuple[str, int]]]:
    worker = ScriptedWorker(script)
    server = await asyncio.start_server(worker.serve, "127.0.0.1", 0)
    try:
        yield worker, server.sockets[0].getsockname()[:2]
    finally:
        server.close()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Head and body of one request with a content-length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    return head + await reader.readexactly(length)


def answering(*answers: bytes) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await read_request(reader)
            writer.write(answer)
            await writer.drain()

    return script
