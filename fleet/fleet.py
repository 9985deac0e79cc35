"""The worker processes that this gateway owns: started, watched, restarted, found again, stopped."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from config.args import RESTARTS_VARIABLE
from config.settings import ManagedWorker
from config.states import WorkerState
from fleet.backoff import SETTLED_S, next_delay
from fleet.command import FINGERPRINT_VARIABLE, ID_VARIABLE, worker_argv, worker_env
from fleet.process import WorkerProcess, find_managed_process
from monitor.heartbeat import Heartbeat
from monitor.registry import UnknownWorker, Worker, WorkerRegistry
from utils.common import Tasks, port_is_free
from utils.errors import ConfigError
from utils.logger import EventLogger

USELESS: Final = (WorkerState.UNHEALTHY, WorkerState.FAILED, WorkerState.STOPPING)
"""A worker gets out of these soon: by itself, or by its end."""
PORT_RELEASE_S: Final = 5.0

logger = EventLogger("fleet")


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """What all managed workers share."""

    serve: Path  # serve.py
    pythons: Mapping[str, str]  # interpreter by backend; "" is the default
    gateway_address: str
    log_dir: Path
    drain_timeout_s: float
    max_body_mb: float
    token: str = ""
    watch_interval_s: float = 1.0
    hang_limit_s: float = 30.0  # so long in one of ``USELESS`` with its process alive: killed, and started again


class Fleet:
    """All managed workers. One task each; the registry hears of everything that happens to them."""

    def __init__(
        self,
        workers: Sequence[ManagedWorker],
        settings: FleetSettings,
        registry: WorkerRegistry,
        environ: Mapping[str, str],
        rng: random.Random,
    ) -> None:
        self._workers = workers
        self._settings = settings
        self._registry = registry
        self._environ = environ
        self._rng = rng
        self._tasks = Tasks()
        self._running: dict[str, WorkerProcess] = {}
        self.is_closing = False
        """The gateway stops: what dies is not started again, and nobody is ended for a beat that is not taken."""

    def start(self) -> None:
        for worker in self._workers:
            self._tasks.start(self._supervise(worker), f"fleet-{worker.id}")

    async def stop(self, timeout_s: float) -> None:
        """Stops all workers at once, in order where they make it in ``timeout_s`` seconds; nothing is left running."""
        await self._tasks.cancel()
        await asyncio.gather(*(process.stop(timeout_s) for process in self._running.values()))
        self._running.clear()

    def kill(self) -> None:
        """Ends all of them now."""
        for process in self._running.values():
            process.kill()

    # -- one worker ------------------------------------------------------------------------------------------------

    async def _supervise(self, worker: ManagedWorker) -> None:
        failures = 0
        while True:
            process = await self._launch(worker)
            if process is None:
                failures += 1
            else:
                code = await self._watch(worker, process)
                settled = time.monotonic() - process.started_at > SETTLED_S
                failures = 1 if settled else failures + 1
                if self.is_closing:
                    return
                self._fail(worker, ended(code), process.last_lines())
                if code == ConfigError.EXIT_CODE:
                    logger.error("worker_given_up", worker_id=worker.id, why="its arguments are wrong: see its reason")
                    return
            delay = next_delay(failures, self._rng)
            logger.info("worker_restart_in", worker_id=worker.id, seconds=delay, failures=failures)
            await asyncio.sleep(delay)

    async def _launch(self, worker: ManagedWorker) -> WorkerProcess | None:
        """The running process of the worker: one that is there already, else a new one, else None (told why)."""
        argv = self._argv(worker)
        env = worker_env(worker, argv, self._environ, token=self._settings.token)
        log_path = self._settings.log_dir / f"{worker.id}.log"
        adopted = await self._adopt(worker, env[FINGERPRINT_VARIABLE], log_path)
        if adopted is not None:
            return adopted
        announced = self._registry.announce(first_beat(worker), time.monotonic())
        env[RESTARTS_VARIABLE] = str(announced.restarts)
        if not port_is_free(worker.host, worker.port):
            self._fail(worker, f"port {worker.port} is in use by another program: end that, or change the port", [])
            return None
        try:
            process = WorkerProcess.start(argv, env, cwd=self._settings.serve.parent, log_path=log_path)
        except OSError as error:
            self._fail(worker, f"cannot be started: {error}", [])
            return None
        self._running[worker.id] = process
        logger.info("worker_spawned", worker_id=worker.id, pid=process.pid, port=worker.port, log=log_path)
        return process

    def _argv(self, worker: ManagedWorker) -> list[str]:
        settings = self._settings
        python = settings.pythons.get(worker.backend) or settings.pythons[""]
        return worker_argv(
            worker, python, settings.serve, settings.gateway_address, settings.drain_timeout_s, settings.max_body_mb
        )

    async def _adopt(self, worker: ManagedWorker, fingerprint: str, log_path: Path) -> WorkerProcess | None:
        """A process that an earlier gateway left behind is kept if it was started the same way, else ended."""
        pid = await asyncio.to_thread(find_managed_process, worker.id, ID_VARIABLE)
        if pid is None:
            return None
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            process = WorkerProcess.adopt(pid, log_path=log_path)
            if psutil.Process(pid).environ().get(FINGERPRINT_VARIABLE) == fingerprint:
                self._announce_adopted(worker)
                self._running[worker.id] = process
                logger.info("worker_adopted", worker_id=worker.id, pid=pid)
                return process
            logger.info("worker_outdated", worker_id=worker.id, pid=pid)
            await process.stop(PORT_RELEASE_S)
        return None

    def _announce_adopted(self, worker: ManagedWorker) -> None:
        try:
            self._registry.worker(worker.id)
        except UnknownWorker:
            self._registry.announce(first_beat(worker), time.monotonic())
        self._registry.adopt(worker.id)

    async def _watch(self, worker: ManagedWorker, process: WorkerProcess) -> int | None:
        """Until the process ends, by itself or because it hangs. Its exit code; None where it is not to be known."""
        ended = asyncio.ensure_future(process.wait())
        useless_since: float | None = None
        try:
            while not ended.done():
                await asyncio.wait({ended}, timeout=self._settings.watch_interval_s)
                process.trim_log()
                state = self._record(worker).state
                useless_since = (useless_since or time.monotonic()) if state in USELESS else None
                why = self._why_hopeless(worker, process, state, useless_since)
                if why and not ended.done():
                    logger.warning("worker_hangs", worker_id=worker.id, pid=process.pid, why=why)
                    os.kill(process.pid, signal.SIGKILL)
            return ended.result()
        except ProcessLookupError:
            return await ended
        finally:
            ended.cancel()
            if process.exited:
                process.kill()  # what the dead worker's engine may have left
                self._running.pop(worker.id, None)

    def _why_hopeless(
        self, worker: ManagedWorker, process: WorkerProcess, state: WorkerState, useless_since: float | None
    ) -> str:
        now, limit_s = time.monotonic(), self._settings.hang_limit_s
        if self.is_closing:
            return ""
        if useless_since is not None and now - useless_since > limit_s:
            return f"{state} for {limit_s:g} s"
        if state in (WorkerState.STARTING, WorkerState.LOADING) and now - process.started_at > worker.start_timeout_s:
            return f"not ready after start_timeout_s ({worker.start_timeout_s:g} s)"
        return ""

    def _record(self, worker: ManagedWorker) -> Worker:
        try:
            return self._registry.worker(worker.id)
        except UnknownWorker:
            return self._registry.announce(first_beat(worker), time.monotonic())

    def _fail(self, worker: ManagedWorker, why: str, last_lines: list[str]) -> None:
        """Tell the registry, with the worker's own last words where it had some."""
        own = self._record(worker).beat
        reason = own.reason if own.state is WorkerState.FAILED and own.reason else why
        if not own.reason and last_lines:
            reason = f"{why}; it last said: {last_lines[-1][:500]}"
        logger.error("worker_failed", worker_id=worker.id, reason=reason)
        self._registry.judge(worker.id, WorkerState.FAILED, reason)


def first_beat(worker: ManagedWorker) -> Heartbeat:
    """What is known of a worker before it has said anything itself."""
    return Heartbeat(
        worker_id=worker.id,
        model_name=worker.model_name,
        aliases=worker.aliases,
        backend=worker.backend,
        host=worker.host,
        port=worker.port,
        model_path=worker.model_path,
        state=WorkerState.STARTING,
        gpu_ids=worker.gpu_ids or (),
        heartbeat_interval=worker.heartbeat_interval,
    )


def ended(code: int | None) -> str:
    """Words for the way a process ended."""
    if code is None:
        return "its process ended"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"its process was killed by {signal.Signals(-code).name}"
    return f"its process ended with code {code}"
