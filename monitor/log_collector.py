"""The gateway's side of all logs: one buffer and one follower a worker."""

import asyncio

import httpx

from config.states import GONE
from monitor.logs import LogBuffer, LogFollower
from monitor.registry import Worker, WorkerRegistry
from utils.common import Tasks, url_host


class LogCollector:
    """Follows every worker that serves its log, for as long as the registry knows it."""

    def __init__(self, registry: WorkerRegistry, client: httpx.AsyncClient, *, token: str = "") -> None:
        self._client = client
        self._token = token
        self._buffers: dict[str, LogBuffer] = {}
        self._followers: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._tasks = Tasks()
        registry.subscribe(self._on_change)

    def buffer(self, worker_id: str) -> LogBuffer | None:
        """The log of a worker; None for a worker that is unknown."""
        return self._buffers.get(worker_id)

    def close(self) -> None:
        """Ends every reader's stream, so that a server can stop."""
        for buffer in self._buffers.values():
            buffer.close()

    async def stop(self) -> None:
        self.close()
        await self._tasks.cancel()

    def _on_change(self, worker_id: str, _: Worker | None, worker: Worker | None) -> None:
        if worker is None:
            self._unfollow(worker_id)
            buffer = self._buffers.pop(worker_id, None)
            if buffer is not None:
                buffer.close()
            return
        buffer = self._buffers.setdefault(worker_id, LogBuffer())
        if worker.beat.state in GONE or not worker.beat.log_streaming:
            return
        url = f"http://{url_host(worker.beat.host)}:{worker.beat.port}/logs/stream"
        following = self._followers.get(worker_id)
        if following is None or following[0] != url:
            self._unfollow(worker_id)
            follower = LogFollower(self._client, url, buffer, token=self._token)
            self._followers[worker_id] = (url, self._tasks.start(follower.run(), f"log-{worker_id}"))

    def _unfollow(self, worker_id: str) -> None:
        _, task = self._followers.pop(worker_id, ("", None))
        if task is not None:
            task.cancel()
