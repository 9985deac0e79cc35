"""BaseBackend: the life of an engine inside a worker. An engine's own class says only what differs."""

import asyncio
import contextlib
import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

import psutil

from backends.adapters import Adapters
from backends.control import LifeControl
from backends.inner import CANARY, Gist, InnerClient, NoAnswer, Request, gist_of, probe
from backends.status import WorkerStatus
from config.args import WorkerArguments
from config.states import WorkerState
from utils.common import bind_socket, url_host
from utils.errors import ConfigError, Conflict, IChatError
from utils.logger import EventLogger
from utils.server import Server

CHECK_INTERVAL_S: Final = 0.5
ENGINE_STOP_TIMEOUT_S: Final = 20.0

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

logger = EventLogger("backend")


class EngineDied(IChatError):
    """The engine cannot answer any more: the worker has failed and must be started again."""


class Doors(Protocol):
    """The worker's HTTP side, as its backend sees it."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    def attach(self, engine_app: ASGIApp) -> None:
        """From now on requests that are not the worker's own go to the engine's app."""

    async def wait_idle(self) -> None:
        """Returns when no request is in flight."""

    def close_streams(self) -> None:
        """Ends the streams that have no end of their own, so that the server can stop."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an engine has got: ``steps`` grows whenever it does something for one of ``running`` requests."""

    running: int
    steps: int


class ProgressWatch:
    """Notices an engine that has requests and does nothing for them. Pure: time comes in, in seconds."""

    def __init__(self) -> None:
        self._steps = -1
        self._since: float | None = None

    def stalled_for(self, progress: Progress, now: float) -> float:
        """Seconds for which requests have been running without a step; 0 while all is well."""
        if not progress.running or progress.steps != self._steps or self._since is None:
            self._steps, self._since = progress.steps, now
        return now - self._since


class BaseBackend(ABC):
    """One engine's whole life: ``run`` opens the door, starts the engine, serves, watches, drains and cleans up."""

    name: ClassVar[str]
    warmup_timeout_s: ClassVar[float] = 600.0

    def __init__(self, arguments: WorkerArguments, status: WorkerStatus, doors: Doors) -> None:
        self.arguments = arguments
        self.status = status
        self.port = arguments.port
        """The port listened on: known after ``_setup_server`` where the argument was 0."""
        self.on_open: Callable[[], object] | None = None
        """Called once the port is open, before the engine loads: the time for the first heartbeat."""
        changing = asyncio.Lock()
        self.adapters = Adapters(self, status, arguments.names, changing)
        self.control = LifeControl(self, status, doors.wait_idle, arguments.drain_timeout, changing)
        self._doors = doors
        self._strangers = set(psutil.Process().children(recursive=True))  # none of the engine's
        self._inner: InnerClient | None = None
        self._lost: IChatError | None = None
        self._stop_requested = asyncio.Event()
        self._server: Server | None = None
        self._sock: socket.socket | None = None

    # -- what differs between engines ------------------------------------------------------------------------------

    @classmethod
    def describe_arguments(cls) -> str:
        """The engine's own arguments, as its parser lists them; may take seconds, for it imports the engine."""
        return f"The {cls.name} engine has no arguments of its own."

    @abstractmethod
    async def create_engine(self) -> ASGIApp:
        """Starts the engine and returns its OpenAI app. Must not block the event loop: the doors are open already.

        Sets ``status.facts``. Raises ConfigError for arguments that the engine does not take.
        """

    @abstractmethod
    async def stop_engine(self) -> None:
        """Ends the engine; also called after a start that failed half-way, and after the engine died."""

    @abstractmethod
    def check_alive(self) -> None:
        """Raises EngineDied if the engine is dead. Cheap: called twice a second."""

    @abstractmethod
    def progress(self) -> Progress:
        """How far the engine has got, to tell a slow one from one that hangs."""

    def check_can_sleep(self) -> None:
        """Raises Conflict for an engine that cannot, or was not started for it."""
        raise Conflict(f"the {self.name} engine cannot sleep")

    async def put_to_sleep(self, level: int) -> None:  # noqa: B027 - for engines that can
        """Gives the engine's memory back. Nothing runs in it."""

    async def wake_engine(self, level: int) -> None:  # noqa: B027 - for engines that can
        """Takes the memory again that was given back at ``level``."""

    async def load_adapter(self, name: str, path: str) -> None:
        raise Conflict(f"the {self.name} engine takes no LoRA adapters ({name}, {path})")

    async def unload_adapter(self, name: str) -> None:
        raise Conflict(f"the {self.name} engine takes no LoRA adapters ({name})")

    def warmup_requests(self) -> list[Request]:
        """The requests that make the engine ready for a user's."""
        names, tasks = self.arguments.model_name, self.status.facts.tasks
        requests = (probe(names, tasks, prompt) for prompt in self.arguments.warmup_prompts)
        return [request for request in requests if request is not None]

    def warmup_headers(self) -> dict[str, str]:
        """What the engine's own app asks of every caller, such as a key."""
        return {}

    # -- the life --------------------------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Drain and end. Safe to call from a signal handler of the loop, and more than once."""
        self._stop_requested.set()

    async def run(self) -> None:
        """From the open door to the end. Raises ConfigError or EngineDied; returns after a requested stop."""
        try:
            self._sock = self._setup_server()
            await self._run_server_worker(self._sock)
        except Exception as error:
            self._fail(error)
            raise
        finally:
            await self.cleanup()

    def _fail(self, error: Exception) -> None:
        self.status.set(WorkerState.FAILED, str(error) or type(error).__name__)

    def _setup_server(self) -> socket.socket:
        host, port = self.arguments.host, self.arguments.port
        try:
            sock = bind_socket(host, port)
        except OSError as error:
            raise ConfigError(
                f"port {port} on {host} cannot be listened on ({error.strerror or error}): "
                "end the program that uses it, or give another --port"
            ) from error
        sock.listen(4096)
        self.port = sock.getsockname()[1]
        logger.info("worker_listening", address=f"http://{url_host(host)}:{self.port}", model=self.arguments.model_name)
        return sock

    async def _run_server_worker(self, sock: socket.socket) -> None:
        """Doors first, then the engine, then the watch beside the server: whichever ends first ends all."""
        serving = asyncio.create_task(self._serve_http(sock), name="http")
        if self.on_open is not None:
            self.on_open()
        living = asyncio.create_task(self._live(), name="engine")
        stopping: asyncio.Task[Any] = asyncio.create_task(self._stop_requested.wait(), name="stop")
        try:
            done, _ = await asyncio.wait({serving, living, stopping}, return_when=asyncio.FIRST_COMPLETED)
            for task in (living, serving):
                if task in done:
                    task.result()
                    raise EngineDied(f"the worker's {task.get_name()} task ended by itself")
            await self._drain(living)
        finally:
            for task in (living, stopping):
                task.cancel()
            await asyncio.gather(living, stopping, return_exceptions=True)
            self._doors.close_streams()
            if self._server is not None:
                self._server.stop()
            await asyncio.gather(serving, return_exceptions=True)

    async def _serve_http(self, sock: socket.socket) -> None:
        self._server = Server(self._doors, sock, drain_timeout_s=1)
        await self._server.run_until_stopped()

    async def _live(self) -> None:
        try:
            app = await self.create_engine()
            self._doors.attach(app)
            await self._wait_and_warmup(app)
            self.status.set(WorkerState.READY)
            await self._health_check_monitor()
        except Exception as error:
            self._fail(error)  # at once: the doors stay open for a moment, and must not say "ready"
            raise

    async def _wait_and_warmup(self, app: ASGIApp) -> None:
        """Small requests through the engine's own routes, so that no user pays for what a first request costs."""
        self._inner = InnerClient(app, self.warmup_headers(), self.warmup_timeout_s)
        for request in self.warmup_requests() if self.arguments.warmup else ():
            try:
                await self._inner.post(request)
            except NoAnswer as error:
                raise EngineDied(f"warm-up: {error}") from None

    async def _health_check_monitor(self) -> None:
        """Until the engine dies (at once) or hangs (after the progress timeout, said half-way)."""
        loop = asyncio.get_running_loop()
        watch = ProgressWatch()
        while True:
            self.check_alive()
            if self._lost is not None:
                raise self._lost
            stalled_s = watch.stalled_for(self.progress(), loop.time())
            if stalled_s > self.arguments.progress_timeout:
                raise EngineDied(f"the engine hangs: requests are running, but no token came for {stalled_s:.0f} s")
            is_slow = stalled_s > self.arguments.progress_timeout / 2
            if is_slow and self.status.state is WorkerState.READY:  # one that drains must not become ready again
                self.status.set(WorkerState.UNHEALTHY, f"no token since {self.arguments.progress_timeout / 2:g} s")
            elif not is_slow and self.status.state is WorkerState.UNHEALTHY:
                self.status.set(WorkerState.READY)
            await asyncio.sleep(CHECK_INTERVAL_S)

    # -- what asks the engine to sleep sees of it (backends/control.py) --------------------------------------------

    async def canary(self) -> Gist | None:
        """What the engine says to a small request, always the same. Raises NoAnswer."""
        request = probe(self.arguments.model_name, self.status.facts.tasks, CANARY)
        return gist_of(await self._inner.post(request)) if request and self._inner else None

    def running(self) -> int:
        return self.progress().running

    def give_up(self, error: IChatError) -> None:
        """The engine has not died, but cannot be used: the worker ends with ``error``."""
        self._lost = error
        self._fail(error)

    async def _drain(self, living: "asyncio.Task[None]") -> None:
        """Take nothing new, finish what is in flight, at most ``drain_timeout``; an engine that dies ends it early."""
        self.control.end()
        self.status.set(WorkerState.DRAINING)
        idle = asyncio.create_task(self._doors.wait_idle())
        done, _ = await asyncio.wait(
            {idle, living}, timeout=self.arguments.drain_timeout, return_when=asyncio.FIRST_COMPLETED
        )
        if idle not in done:
            logger.warning("drain_cut", limit_s=self.arguments.drain_timeout)
        idle.cancel()
        self.status.set(WorkerState.STOPPING)

    async def cleanup(self) -> None:
        """On every exit: engine stopped, its processes gone, socket closed."""
        try:
            async with asyncio.timeout(ENGINE_STOP_TIMEOUT_S):
                await self.stop_engine()
        except Exception as error:
            # It is ending anyway: what the engine did not end in order is killed below.
            logger.warning("engine_stop_failed", error=f"{type(error).__name__}: {error}")
        await asyncio.to_thread(self.kill_engine_processes)
        if self._sock is not None:
            self._sock.close()

    def kill_engine_processes(self) -> None:
        """Ends every process below this one that was not there before: no engine outlives its worker. Blocks."""
        children = [child for child in psutil.Process().children(recursive=True) if child not in self._strangers]
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=5)
