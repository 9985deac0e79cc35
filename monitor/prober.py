"""Looks after workers between their beats: a killed process is known within a probe interval, not three beats later."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Final

from config.states import WorkerState
from monitor.registry import Worker, WorkerRegistry
from utils.common import Tasks
from utils.logger import EventLogger

CONNECT_TIMEOUT_S: Final = 5.0

Connect = Callable[[str, int], Awaitable[None]]
"""Opens and closes a connection. Raises OSError (refused, unreachable) or TimeoutError."""

ENDED = (WorkerState.STOPPED, WorkerState.FAILED)

logger = EventLogger("prober")


class Prober:
    """Every interval: expires silent workers, and tries a connection to each of the others.

    A connection is enough, and it costs little: a dead process refuses it at once, and a hanging one misses its beats.
    """

    def __init__(self, registry: WorkerRegistry, *, interval_s: float, connect: Connect | None = None) -> None:
        self._registry = registry
        self._interval_s = interval_s
        self._connect = connect or try_connection
        self._tasks = Tasks()
        self._busy: set[str] = set()
        self.is_closing = False
        """The gateway takes no beats any more: that none come says nothing of a worker."""

    async def run(self) -> None:
        """Probes until cancelled."""
        try:
            while True:
                self.probe_all()
                await asyncio.sleep(self._interval_s)
        finally:
            await self._tasks.cancel()

    def probe_all(self) -> list["asyncio.Task[None]"]:
        """Starts a probe of every worker that should answer; one that hangs holds up no other."""
        if not self.is_closing:
            self._registry.expire(time.monotonic())
        started = []
        for worker in self._registry.workers():
            if worker.id not in self._busy and worker.last_beat is not None and worker.state not in ENDED:
                self._busy.add(worker.id)
                started.append(self._tasks.start(self._probe(worker), f"probe-{worker.id}"))
        return started

    async def _probe(self, worker: Worker) -> None:
        host, port = worker.beat.host, worker.beat.port
        try:
            await self._connect(host, port)
        except ConnectionRefusedError:
            self._report(worker, f"{host}:{port} refused the connection: its process is gone", is_gone=True)
        except TimeoutError:
            self._report(worker, f"{host}:{port} did not accept a connection within {CONNECT_TIMEOUT_S:g} s")
        except (OSError, UnicodeError) as error:  # UnicodeError: no possible host name
            self._report(worker, f"{host}:{port} cannot be connected to: {error}")
        else:
            if worker.unreachable:
                self._registry.mark_reachable(worker.id)
        finally:
            self._busy.discard(worker.id)

    def _report(self, worker: Worker, reason: str, *, is_gone: bool = False) -> None:
        if worker.unreachable != reason:
            self._registry.mark_unreachable(worker.id, reason, is_gone=is_gone)


async def try_connection(host: str, port: int) -> None:
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        _, writer = await asyncio.open_connection(host, port)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
