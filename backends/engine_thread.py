"""A thread for an engine's blocking work: imports, loading, shutting down."""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


class EngineThread:
    """Runs one job after the other in a thread that lives as long as the process.

    An engine's children are killed when the thread that started them ends (``utils.process.die_with_parent``), so the
    threads of a pool will not do. It is a daemon: a process that must end does not wait for a job that hangs.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._current: Future[Any] | None = None

    async def run(self, job: Callable[..., Result], *arguments: Any) -> Result:
        """``job(*arguments)`` in the thread. Cancelling the wait does not end a job that has begun: see ``is_busy``."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        future: Future[Result] = Future()
        self._current = future
        self._jobs.put((future, lambda: job(*arguments)))
        return await asyncio.wrap_future(future)

    @property
    def is_busy(self) -> bool:
        return self._current is not None and not self._current.done()

    def _work(self) -> None:
        while True:
            future, job = self._jobs.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = job()
            except BaseException as error:  # whoever waits for the job decides
                future.set_exception(error)
            else:
                future.set_result(result)
            del future, job  # a thread that waits must hold no engine
