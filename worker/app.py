"""The worker's doors: /health /ready /metrics /logs/stream /control/* are ours, all else goes to the engine's app."""

import asyncio
import hmac
import os
from collections.abc import Callable
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from backends.base import ASGIApp, BaseBackend
from backends.status import WorkerStatus
from config.args import WorkerArguments
from config.states import WorkerState
from monitor.log_stream import LogResponse
from monitor.logs import LogBuffer
from utils.common import is_loopback
from utils.errors import ApiError, Conflict, Forbidden, InternalError, MethodNotAllowed, NoReplicaReady, NotFound
from utils.logger import EventLogger
from worker.control import Answer, ControlRoutes
from worker.engine_errors import EngineErrors
from worker.media import MediaPolicy
from worker.media_guard import MediaGuard
from worker.metrics import Traffic
from worker.performance import PerformanceApp
from worker.routes import is_open

STATE_HEADER: Final = "x-ichat-worker-state"
"""Tells the gateway that a 503 is the door's, not the engine's: the request may go to another replica."""
RETRY_AFTER_S: Final = 2

logger = EventLogger("worker")


class WorkerApp:
    """Raw ASGI. Implements the backend's ``Doors``."""

    def __init__(
        self,
        arguments: WorkerArguments,
        status: WorkerStatus,
        logs: LogBuffer,
        traffic: Traffic,
        metrics: CollectorRegistry,
    ) -> None:
        self._arguments = arguments
        self._status = status
        self._logs = logs
        self._traffic = traffic
        self._metrics = metrics
        self.on_reader_gone: Callable[[], None] = lambda: None
        """Called when a log stream ends: its reader is the gateway, which may have died."""
        self.backend: BaseBackend | None = None
        """Whose engine the control routes are about; set once there is one."""
        self._engine: ASGIApp | None = None
        self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._own: dict[tuple[str, str], Answer] = {
            ("GET", "/health"): self._health,
            ("GET", "/ready"): self._health,
            ("GET", "/metrics"): self._prometheus,
            ("GET", "/logs/stream"): self._log_stream,
        }
        self._control = ControlRoutes(self._get_backend, status, lambda: traffic.in_flight, self._require_gateway)
        self._own |= self._control.answers()

    def _get_backend(self) -> BaseBackend:
        if self.backend is None:
            raise Conflict("the worker has no engine yet: try again later")
        return self.backend

    def attach(self, engine_app: ASGIApp) -> None:
        policy = MediaPolicy(frozenset(self._arguments.allowed_media_domains), self._arguments.allowed_local_media_path)
        timed = PerformanceApp(EngineErrors(engine_app), self._traffic)
        modalities = lambda: self._status.facts.modalities  # noqa: E731 - those of the moment
        self._engine = MediaGuard(timed, policy, self._arguments.max_body_bytes, modalities)

    async def wait_idle(self) -> None:
        await self._idle.wait()

    def close_streams(self) -> None:
        self._stopping = True
        self._logs.close()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        own = self._own.get((method, scope["path"]))
        if own is not None:
            response = await self._answer(own, Request(scope, receive))
            await response(scope, receive, send)
        elif not is_open(scope["path"]):
            await closed(scope["path"], [method for method, path in self._own if path == scope["path"]])(
                scope, receive, send
            )
        elif self._status.state is not WorkerState.READY or self._engine is None:
            self._traffic.turned_away += 1
            await self._turn_away()(scope, receive, send)
        else:
            await self._pass_on(self._engine, scope, receive, send)

    async def _pass_on(self, engine: ASGIApp, scope: Any, receive: Any, send: Any) -> None:
        self._traffic.requests += 1
        self._traffic.in_flight += 1
        self._idle.clear()
        has_started = False

        async def send_on(message: Any) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await engine(scope, receive, send_on)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            # The drain limit has passed, or the engine is dead: another replica may take what is not answered yet.
            if not has_started:
                await self._turn_away()(scope, receive, send)
        finally:
            self._traffic.in_flight -= 1
            if not self._traffic.in_flight:
                self._idle.set()

    async def _answer(self, own: Answer, request: Request) -> Response:
        try:
            return await own(request)
        except ApiError as error:
            return JSONResponse(error.envelope(), error.status)
        except Exception as error:
            logger.error("route_crashed", path=request.url.path, exc_info=error)
            broken = InternalError(f"the worker failed at this: {type(error).__name__}: its log says more")
            return JSONResponse(broken.envelope(), broken.status)

    async def _health(self, _: Request) -> Response:
        """200 only when the worker can answer; else 503 with its state and why."""
        ready = self._status.state is WorkerState.READY
        body = {
            "status": "ok" if ready else self._status.state.value,
            "reason": self._status.reason,
            "worker_id": self._arguments.worker_id,
            "in_flight": self._traffic.in_flight,
        }
        return JSONResponse(body, 200 if ready else 503)

    async def _prometheus(self, _: Request) -> Response:
        # The engines register their families in the client library's own registry; SGLang's children, in files.
        registries = [REGISTRY, self._metrics]
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registries.insert(1, CollectorRegistry())
            MultiProcessCollector(registries[1])  # type: ignore[no-untyped-call]
        return Response(b"".join(map(generate_latest, registries)), media_type=CONTENT_TYPE_LATEST)

    async def _log_stream(self, request: Request) -> Response:
        if not self._arguments.log_streaming:
            raise NotFound("this worker was started with --log-streaming false")
        self._require_gateway(request)
        return LogResponse(self._logs, request.headers.get("last-event-id"), self.on_reader_gone)

    def _require_gateway(self, request: Request) -> None:
        """Logs and control are for the gateway alone: its token where there is one, else callers of this machine."""
        if self._arguments.token:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self._arguments.token.encode()):
                raise Forbidden("this route is for the gateway: send its worker token as 'Authorization: Bearer TOKEN'")
        elif "origin" in request.headers:
            raise Forbidden("this route is not for web pages: a page that a browser shows could ask it unseen")
        elif not is_loopback(request.client.host if request.client else ""):
            raise Forbidden(
                "this route is for callers of this machine: "
                "set ICHAT_WORKER_TOKEN here, and server_settings.worker_token at the gateway"
            )

    def _turn_away(self) -> Response:
        state, reason = self._status.state, self._status.reason
        why = f"worker {self._arguments.worker_id} is {state}{f' ({reason})' if reason else ''}: try again later"
        error = NoReplicaReady(why, retry_after_s=RETRY_AFTER_S)
        headers = {"retry-after": str(RETRY_AFTER_S), STATE_HEADER: state.value}
        return JSONResponse(error.envelope(), error.status, headers)


def closed(path: str, methods: list[str]) -> Response:
    """For a path that is not there, or is there for ``methods``."""
    if methods:
        wrong = MethodNotAllowed(f"{path} does not take this method: use {' or '.join(methods)}")
        return JSONResponse(wrong.envelope(), wrong.status, {"allow": ", ".join(methods)})
    error = NotFound(
        f"a worker has no route {path[:200]}: it passes on what the engine answers below /v1, and has "
        "/control/drain, /control/sleep, /control/wake and /control/adapters instead of the engine's own control routes"
    )
    return JSONResponse(error.envelope(), error.status)
