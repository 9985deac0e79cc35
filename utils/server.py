"""uvicorn, run by us: its socket is bound before, its signals are ours, and it stops when it is told to."""

import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import uvicorn

KEEP_ALIVE_S: Final = 75
"""Longer than the idle time of the pools that talk to us, so that it is they who close idle connections."""

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]


class Server(uvicorn.Server):
    """A uvicorn server on a bound socket, without signal handlers."""

    def __init__(self, app: ASGIApp, sock: socket.socket, *, drain_timeout_s: float) -> None:
        self._sock = sock
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                loop="none",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
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

    def stop(self, *, at_once: bool = False) -> None:
        self.should_exit = True
        self.force_exit = self.force_exit or at_once
