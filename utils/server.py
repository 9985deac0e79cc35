"""uvicorn, run by us: its socket is bound before, its signals are ours, and it stops when it is told to."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from utils.errors import BadRequest

KEEP_ALIVE_S: Final = 75
"""Longer than the idle time of the pools that talk to us, so that it is they who close idle connections."""
TURNS: Final = 3
"""Of the event loop: so long may a connection be on its way in, or a closed one on its way out."""

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's, but what is no HTTP is refused in OpenAI's envelope too."""

    def send_400_response(self, msg: str) -> None:
        body = BadRequest(f"{msg} Send HTTP/1.1 (for https, ask the https address)").body()
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        self.transport.close()


class Server(uvicorn.Server):
    """A uvicorn server on a bound socket, without signal handlers."""

    def __init__(
        self,
        app: ASGIApp,
        sock: socket.socket,
        *,
        drain_timeout_s: float,
        protocol: Callable[..., asyncio.Protocol] = HttpProtocol,
    ) -> None:
        self._sock = sock
        self._stopped = asyncio.Event()
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,  # type: ignore[arg-type]  # it takes whatever makes protocols
                interface="asgi3",
                loop="none",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, round(drain_timeout_s)),
                backlog=4096,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the owner's: it stops more than this server, and in an order of its own."""
        yield

    async def run_until_stopped(self) -> None:
        """Serves until ``stop`` is called; then finishes what is in flight, at most ``drain_timeout_s``."""
        await self.serve(sockets=[self._sock])

    async def main_loop(self) -> None:
        """uvicorn's own wakes ten times a second to see whether it is to stop: here it is told."""
        while not self.should_exit:
            await self.on_tick(0)  # the date that answers bear
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._stopped.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own begins with a tenth of a second, whatever is open: here only what is open is waited for."""
        for server in self.servers:
            server.close()
        for _ in range(TURNS):
            await asyncio.sleep(0)
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)
            return
        for sock in sockets or []:
            sock.close()
        for server in self.servers:
            await server.wait_closed()

    def stop(self, *, at_once: bool = False) -> None:
        self.should_exit = True
        self._stopped.set()
        self.force_exit = self.force_exit or at_once
