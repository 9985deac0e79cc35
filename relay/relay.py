"""Relay: one request, from bytes in to bytes out. Raw ASGI, in front of the control plane's app."""

import asyncio
import random
import time
from collections.abc import Mapping
from typing import Final, cast

from config.settings import ServerSettings
from monitor.metrics import RelayMetrics
from monitor.registry import Replica, WorkerRegistry
from relay import policy
from relay.access import Access
from relay.disconnect import DisconnectWatch
from relay.headers import Header, answer_headers, request_head, request_id
from relay.request import (
    ASGIApp,
    ClientGone,
    Receive,
    RequestFields,
    Scope,
    Send,
    check_content_type,
    parse_fields,
    read_body,
)
from relay.upstream import BadAnswer, ConnectFailed, Exchange, Upstream, UpstreamError, WorkerSilent
from utils.errors import ApiError, InternalError, ModelNotFound, NoReplicaReady, WorkerBroke, WorkerTimeout
from utils.logger import EventLogger

ROUTES: Final = {
    "/v1/chat/completions": "chat completion",
    "/v1/completions": "completion",
    "/v1/embeddings": "embedding",
}
"""The data plane: POST requests with JSON bodies that name a model."""
RETRY_AFTER_S: Final = 2
WORKER_STATE_HEADER: Final = b"x-ichat-worker-state"
"""An iChat worker's door says with it that the answer is its own, not the engine's: it takes nothing now."""

logger = EventLogger("relay")


class Flight:
    """A request on its way: what its answer's headers, its metrics and its log line need."""

    __slots__ = ("arrived", "attempts", "cut", "gone", "headers", "id", "is_event_stream", "model", "path", "started",
                 "status", "worker")  # fmt: skip

    def __init__(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        self.path = path
        self.headers = headers
        self.id = request_id(headers)
        self.arrived = time.perf_counter()
        self.model = ""
        self.worker = ""
        self.attempts = 0
        self.status = 0
        self.started = False  # the client has got the head of an answer
        self.is_event_stream = False
        self.cut = False  # the gateway stops, and has waited for this request as long as it may
        self.gone = False  # the client closed its connection

    def answer_headers(self) -> list[Header]:
        return [
            (b"x-request-id", self.id),
            (b"x-ichat-worker", self.worker.encode() or b"none"),
            (b"x-ichat-attempts", b"%d" % self.attempts),
            (b"x-ichat-queue-ms", b"0"),
        ]


class Relay:
    """The data plane. Requests to its routes go to workers, everything else to ``app``."""

    def __init__(
        self,
        app: ASGIApp,
        registry: WorkerRegistry,
        upstream: Upstream,
        access: Access,
        metrics: RelayMetrics,
        settings: ServerSettings,
        rng: random.Random,
    ) -> None:
        self._app = app
        self._registry = registry
        self._upstream = upstream
        self._access = access
        self._metrics = metrics
        self._settings = settings
        self._max_body = settings.max_body_bytes
        self._rng = rng
        self.in_flight: dict[str, int] = {}
        """Requests that this gateway has at each worker, by worker id."""
        self._flights: dict[Flight, asyncio.Task[None]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in ROUTES and scope["method"] == "POST":
            await self._serve(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def cut_flights(self) -> None:
        """Ends the requests that are still in flight: with an error, and streams with an error event."""
        for flight, task in list(self._flights.items()):
            flight.cut = True
            task.cancel()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        flight = Flight(scope["path"], dict(scope["headers"]))
        try:
            await self._answer(flight, scope, receive, send)
        except ApiError as error:
            await self._answer_error(flight, error, send)
        except ClientGone:
            flight.gone = True
        except Exception as error:
            # The top of this request's task: nothing of one request may disturb another.
            logger.error("request_crashed", request_id=flight.id.decode(), path=flight.path, exc_info=error)
            await self._answer_error(flight, InternalError("the gateway failed on this request: see its log"), send)
        finally:
            self._metrics.observe(flight.model, flight.path, 499 if flight.gone else flight.status, flight.arrived)

    async def _answer(self, flight: Flight, scope: Scope, receive: Receive, send: Send) -> None:
        self._access.require_client(flight.headers)
        check_content_type(flight.headers)
        body = await read_body(receive, flight.headers, limit=self._max_body, timeout_s=self._settings.body_timeout_s)
        fields = parse_fields(body)
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._flights[flight] = task

        def leave() -> None:
            flight.gone = True
            task.cancel()

        watch = DisconnectWatch(receive, leave)
        try:
            await self._forward(flight, scope, body, fields, send)
        except asyncio.CancelledError:
            if not (flight.gone or flight.cut) or task.uncancel() > 0:
                raise
            if flight.cut and not flight.gone:
                await self._answer_cut(flight, send)
        finally:
            del self._flights[flight]
            watch.stop()

    async def _answer_cut(self, flight: Flight, send: Send) -> None:
        error = NoReplicaReady("the gateway is stopping: try again", retry_after_s=RETRY_AFTER_S)
        if flight.started:
            await self._break_off(flight, error, send)
        else:
            await self._answer_error(flight, error, send)

    async def _forward(self, flight: Flight, scope: Scope, body: bytes, fields: RequestFields, send: Send) -> None:
        model = str(fields.model)
        target = scope["raw_path"]
        if scope["query_string"]:
            target = b"%b?%b" % (target, scope["query_string"])
        tried: list[str] = []
        last: ApiError | None = None
        while flight.attempts < self._settings.max_attempts:
            replica = self._choose(flight, model, tried)
            if replica is None:
                break
            flight.attempts += 1
            flight.worker = replica.worker_id
            self.in_flight[replica.worker_id] = self.in_flight.get(replica.worker_id, 0) + 1
            exchange: Exchange | None = None
            try:
                address = (replica.host, replica.port)
                head = request_head(target, address, scope["headers"], flight.id, len(body))
                exchange = await self._upstream.open(address, head, body)
                if exchange.status == 503 and (state := is_turned_away(exchange)):
                    tried.append(replica.worker_id)
                    last = no_replica_ready(model, f"{replica.worker_id} is {state}")
                    continue
                await self._pass_on(flight, exchange, send)
                return
            except UpstreamError as error:
                self._note_failure(flight, replica, error)
                tried.append(replica.worker_id)
                last = worker_error(replica, error)
                if isinstance(error, WorkerSilent):
                    break  # the client has waited long enough, and another replica would take as long
            finally:
                if exchange is not None:
                    exchange.close()
                self._land(replica)
            if flight.started:
                await self._break_off(flight, last, send)
                return
        raise last or no_replica_ready(model, describe_workers(self._registry, model))

    def _choose(self, flight: Flight, model: str, tried: list[str]) -> Replica | None:
        replicas = self._registry.route(model)
        if replicas is None:
            raise ModelNotFound(model, self._registry.models())
        flight.model = model
        return policy.choose(replicas, self.in_flight, tried, self._rng)

    def _land(self, replica: Replica) -> None:
        left = self.in_flight[replica.worker_id] - 1
        if left:
            self.in_flight[replica.worker_id] = left
        else:
            del self.in_flight[replica.worker_id]

    async def _pass_on(self, flight: Flight, exchange: Exchange, send: Send) -> None:
        """The worker's answer to the client, byte for byte. Raises UpstreamError if it ends too soon."""
        flight.status = exchange.status
        self._metrics.first_byte(flight.model, flight.arrived)
        await send(
            {
                "type": "http.response.start",
                "status": exchange.status,
                "headers": answer_headers(exchange.headers, flight.answer_headers()),
            }
        )
        flight.started = True
        flight.is_event_stream = is_event_stream(exchange.headers)
        while not exchange.done:
            chunk = await exchange.read()
            if exchange.done:
                await send({"type": "http.response.body", "body": chunk})
                return
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": await exchange.read()})

    def _note_failure(self, flight: Flight, replica: Replica, error: UpstreamError) -> None:
        if isinstance(error, ConnectFailed):
            self._upstream.forget((replica.host, replica.port))
            self._registry.mark_unreachable(replica.worker_id, f"{replica.host}:{replica.port} {error}")
        self._metrics.upstream_error(replica.worker_id, type(error).__name__)
        logger.warning(
            "worker_failed", request_id=flight.id.decode(), worker_id=replica.worker_id, attempt=flight.attempts,
            started=flight.started, error=str(error),
        )  # fmt: skip

    async def _answer_error(self, flight: Flight, error: ApiError, send: Send) -> None:
        if flight.started:
            return
        flight.status = error.status
        body = error.body()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *error.headers]
        flight.started = True
        await send(
            {"type": "http.response.start", "status": error.status, "headers": headers + flight.answer_headers()}
        )
        await send({"type": "http.response.body", "body": body})

    async def _break_off(self, flight: Flight, error: ApiError, send: Send) -> None:
        """End an answer that cannot be whole any more, so that no client takes it for a whole one.

        A stream gets an error event and no ``[DONE]``. Any other answer just ends: returning before its end makes the
        server cut the connection, and the client sees that its length is wrong.
        """
        logger.error("answer_cut", request_id=flight.id.decode(), worker_id=flight.worker, error=error.message)
        if flight.is_event_stream:
            await send({"type": "http.response.body", "body": b"data: %b\n\n" % error.body()})


def is_turned_away(exchange: Exchange) -> str:
    """The state of an iChat worker that took the request at its door only to say no; "" for an engine's answer."""
    for name, value in exchange.headers:
        if name == WORKER_STATE_HEADER:
            return value.decode("latin-1")
    return ""


def is_event_stream(headers: list[Header]) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)


def no_replica_ready(model: str, detail: str) -> NoReplicaReady:
    return NoReplicaReady(
        f"no replica of {model} is ready: {detail}. Try again later, or see GET /v1/admin/workers",
        retry_after_s=RETRY_AFTER_S,
    )


def describe_workers(registry: WorkerRegistry, model: str) -> str:
    """The states of a model's workers, for the one who wonders why none is ready."""
    states = [f"{worker.id} is {worker.state}" for worker in registry.workers() if model in worker.beat.names]
    return ", ".join(states[:5]) or "its workers have gone"


def worker_error(replica: Replica, error: UpstreamError) -> ApiError:
    """A hop's error, with the hop's name."""
    where = f"worker {replica.worker_id} ({replica.host}:{replica.port})"
    if isinstance(error, WorkerSilent):
        return WorkerTimeout(f"{where} {error}", code="worker_timeout")
    code = "bad_worker_answer" if isinstance(error, BadAnswer) else "worker_broke"
    return WorkerBroke(f"{where} {error}; try again", code=code)
