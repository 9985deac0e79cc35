"""One worker process: a child in its own session, so that it and all its engine's children can be ended together."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

MAX_LOG_BYTES: Final = 50 * 1024 * 1024
TAIL_BYTES: Final = 16 * 1024


class WorkerProcess:
    """A running worker, spawned by this gateway or by one before it (``adopt``). Linux only: it waits by pidfd."""

    def __init__(self, pid: int, popen: "subprocess.Popen[bytes] | None", log_path: Path) -> None:
        self.pid = pid
        self.log_path = log_path
        self.started_at = time.monotonic()
        self._popen = popen
        self._pidfd = os.pidfd_open(pid)
        self._exited = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._on_exit)

    @classmethod
    def start(cls, argv: Sequence[str], env: Mapping[str, str], *, cwd: Path, log_path: Path) -> "WorkerProcess":
        """Spawns ``argv``; its output goes to ``log_path``, so that it outlives this gateway. Raises OSError."""
        log_path.parent.mkdir(parents=True, exist_ok=True)
        if log_path.exists():
            log_path.replace(log_path.with_suffix(".previous.log"))
        with log_path.open("ab") as log:
            popen = subprocess.Popen(
                list(argv), env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        return cls(popen.pid, popen, log_path)

    @classmethod
    def adopt(cls, pid: int, *, log_path: Path) -> "WorkerProcess":
        """Takes over a process that an earlier gateway spawned. Raises ProcessLookupError."""
        return cls(pid, None, log_path)

    @property
    def exited(self) -> bool:
        return self._exited.is_set()

    async def wait(self) -> int | None:
        """Waits for its end; the exit code (negative: the signal), None for an adopted one."""
        await self._exited.wait()
        return self._popen.wait() if self._popen else None

    async def stop(self, timeout_s: float) -> None:
        """SIGTERM to the worker alone, which ends its engine in order; after ``timeout_s`` SIGKILL to the group."""
        if not self.exited:  # else the number may be another process's by now
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout_s):
                await self._exited.wait()
        except TimeoutError:
            pass
        finally:
            self.kill()
        await self.wait()

    def kill(self) -> None:
        """SIGKILL to the whole group: what is left of the engine, and the worker if it lives."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def last_lines(self, count: int = 15) -> list[str]:
        """The end of its output: why it died."""
        with contextlib.suppress(OSError), self.log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            return log.read().decode("utf-8", "replace").splitlines()[-count:]
        return []

    def trim_log(self) -> None:
        """Keeps the log file bounded. It is opened for appending, so that truncating it is safe."""
        with contextlib.suppress(OSError):
            if self.log_path.stat().st_size > MAX_LOG_BYTES:
                os.truncate(self.log_path, 0)

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        if self._popen is not None:
            self._popen.poll()
        self._exited.set()


def find_managed_process(worker_id: str, variable: str) -> int | None:
    """The pid of a process of ours whose environment says that it is this worker: a gateway before us spawned it."""
    for process in psutil.process_iter(["pid"]):
        with contextlib.suppress(psutil.Error, OSError):
            # Engine children inherit the environment; the worker itself leads its session.
            if process.environ().get(variable) == worker_id and os.getsid(process.pid) == process.pid:
                return process.pid
    return None
