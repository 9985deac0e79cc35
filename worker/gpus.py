"""The GPUs that this worker sees, and how full their memory is before, after and since the engine's load."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from backends.status import WorkerStatus
from monitor.heartbeat import GpuMemory
from monitor.system import Gpu
from monitor.visible_gpus import visible_gpus
from utils.logger import EventLogger

FIRST_READ_S: Final = 5.0
"""The engine's load waits no longer for the first reading."""
READ_INTERVAL_S: Final = 10.0

logger = EventLogger("gpus")


class GpuWatch:
    """Reads NVML before the load, when the worker is ready, and every ten seconds from then on.

    By a daemon thread of its own, the only writer: NVML may hang on a GPU in trouble, and neither the doors nor the
    worker's end may wait for it. Never while the engine loads: one that forks must not copy a lock that NVML holds.
    """

    def __init__(
        self,
        read: Callable[[], Sequence[Gpu]],
        environ: Mapping[str, str],
        status: WorkerStatus,
        *,
        first_read_s: float = FIRST_READ_S,
        interval_s: float = READ_INTERVAL_S,
    ) -> None:
        self.ids: tuple[int, ...] = ()
        """Physical ids, in the engine's order."""
        self.memory: tuple[GpuMemory, ...] = ()
        """Of each of them, as of the last reading."""
        self._read = read
        self._environ = environ
        self._status = status
        self._first_read_s = first_read_s
        self._interval_s = interval_s
        self._before: dict[int, int | None] = {}
        self._after: dict[int, int | None] = {}
        self._is_late = False
        self._is_stopped = False
        self._has_read = threading.Event()
        self._wake = threading.Event()
        status.subscribe(self._wake.set)

    async def start(self) -> None:
        """Begins to read. Returns after the first reading, or after ``first_read_s`` seconds: the engine may load."""
        threading.Thread(target=self._run, name="gpu-watch", daemon=True).start()
        self._is_late = not await asyncio.to_thread(self._has_read.wait, self._first_read_s)
        if self._is_late:
            logger.warning("gpus_slow", seconds=self._first_read_s, why="NVML does not answer: does nvidia-smi?")

    def stop(self) -> None:
        """No reading begins after this. Does not wait for one that hangs."""
        self._is_stopped = True
        self._wake.set()

    def _run(self) -> None:
        try:
            self._read_first()
            self._has_read.set()
            while self.ids and not self._is_stopped:
                self._wake.wait(self._interval_s if self._is_loaded() else None)
                self._wake.clear()
                if self._is_loaded() and not self._is_stopped:
                    self._read_again()
        except Exception as error:
            logger.warning("gpus_unread", error=f"{type(error).__name__}: {error}")
        finally:
            self._has_read.set()

    def _is_loaded(self) -> bool:
        return self._status.load_seconds is not None

    def _read_first(self) -> None:
        gpus = self._read()
        if not self._is_late:  # else the engine has begun to take its part
            self._before = {gpu.index: gpu.memory_used for gpu in gpus}
        self.ids = visible_gpus(self._environ, gpus)
        self.memory = self._memory(gpus)

    def _read_again(self) -> None:
        gpus = self._read()
        self._after = self._after or {gpu.index: gpu.memory_used for gpu in gpus}
        self.memory = self._memory(gpus)

    def _memory(self, gpus: Sequence[Gpu]) -> tuple[GpuMemory, ...]:
        now = {gpu.index: gpu for gpu in gpus}
        return tuple(
            GpuMemory(
                gpu_id=gpu,
                total=now[gpu].memory_total if gpu in now else None,
                used=now[gpu].memory_used if gpu in now else None,
                used_before_load=self._before.get(gpu),
                used_after_load=self._after.get(gpu),
            )
            for gpu in self.ids
        )
