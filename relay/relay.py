"""Relay: one request, from bytes in to bytes out."""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final

from config.settings import RoutingSettings, ServerSettings
from config.states import WorkerState
from monitor.metrics import RelayMetrics
from monitor.registry import Replica, Worker, WorkerRegistry
from relay import policy
from relay.access import Access
from relay.call import Call
from relay.exchange import BadAnswer, ConnectFailed, Exchange, UpstreamError, WorkerSilent
from relay.headers import Header, answer_headers, request_head, request_id, to_worker
from relay.request import body_too_large, check_content_type, parse_fields, session_of
from relay.upstream import Upstream
from utils.errors import ApiError, BadRequest, InternalError, ModelNotFound, NoReplicaReady, WorkerBroke, WorkerTimeout
from utils.logger import EventLogger

ROUTES: Final = {
    "/v1/chat/completions": "chat completion",
    "/v1/completions": "completion",
    "/v1/responses": "response",
    "/v1/messages": "message (Anthropic's)",
    "/v1/embeddings": "embedding",
    "/v1/rerank": "ranking (Cohere's and Jina's)",
    "/v1/score": "score of pairs",
    "/v1/tokenize": "tokenization",
    "/v1/detokenize": "detokenization",
}
"""The data plane: POST requests with JSON bodies that name a model."""
GENERATE: Final = ("generate",)
COMPARE: Final = ("score", "classify", "embed")
TASKS: Final[Mapping[str, tuple[str, ...]]] = {
    "/v1/chat/completions": GENERATE,
    "/v1/completions": GENERATE,
    "/v1/responses": GENERATE,
    "/v1/messages": GENERATE,
    "/v1/embeddings": ("embed",),
    "/v1/rerank": COMPARE,
    "/v1/score": COMPARE,
}
"""What an engine must do for a route, one of these, in the words of ``Heartbeat.tasks``; others are for all."""
RETRY_AFTER_S: Final = 2
CLIENT_GONE: Final = 499
"""The status in our metrics of requests whose client did not wait for the answer's end."""
WORKER_STATE_HEADER: Final = b"x-ichat-worker-state"
"""An iChat worker's door says with it that the answer is its own, not the engine's: it takes nothing now."""

logger = EventLogger("relay")


class Flight:
    """A call on its way: what its answer's headers, its metrics and its log line need."""

    __slots__ = ("arrived", "attempts", "call", "cut", "headers", "id", "is_event_stream", "is_running",
                 "model", "session", "status", "worker")  # fmt: skip

    def __init__(self, call: Call) -> None:
        self.call = call
        self.headers = dict(call.headers)
        self.id = request_id(self.headers)
        self.arrived = time.perf_counter()
        self.model = ""
        self.session = b""
        self.worker = ""
        self.attempts = 0
        self.status = 0
        self.is_event_stream = False
        self.is_running = False  # its task has taken its first step
        self.cut = False  # the gateway stops, and has waited for this request as long as it may

    def answer_headers(self) -> list[Header]:
        return [
            (b"x-request-id", self.id),
            (b"x-ichat-worker", self.worker.encode() or b"none"),
            (b"x-ichat-attempts", b"%d" % self.attempts),
            (b"x-ichat-queue-ms", b"0"),
        ]


class Relay:
    """The data plane: answers the calls that come in by the doors (relay/door.py), by the workers' answers."""

    routes: frozenset[str] = frozenset(ROUTES)

    def __init__(
        self,
        registry: WorkerRegistry,
        upstream: Upstream,
        access: Access,
        metrics: RelayMetrics,
        settings: ServerSettings,
        routing: RoutingSettings,
        rng: random.Random,
    ) -> None:
        self._registry = registry
        self._upstream = upstream
        self._access = access
        self._metrics = metrics
        self._max_attempts = settings.max_attempts
        self.max_body: int = settings.max_body_bytes
        self.body_timeout_s: float = settings.body_timeout_s
        self._rng = rng
        self._policy = policy.POLICIES[routing.policy]
        self._policies = {model: policy.POLICIES[name] for model, name in routing.by_model.items()}
        self._turns: dict[str, int] = {}
        self.in_flight: dict[str, int] = {}
        """Requests that this gateway has at each worker, by worker id."""
        self._flights: dict[Call, Flight] = {}

    # -- the door's side: every call is accepted, then served, refused or lost -------------------------------------

    def accept(self, call: Call) -> None:
        """Answers those at once that are not to be served. The others' bodies may come."""
        flight = self._flights[call] = Flight(call)
        try:
            self._access.require_client(flight.headers)
            check_content_type(flight.headers)
            if call.expects_continue and int(flight.headers.get(b"content-length", b"0")) > self.max_body:
                raise body_too_large(self.max_body)
        except ApiError as error:
            call.keep_alive = call.keep_alive and not call.expects_continue  # its body may come, or the next request
            self.refuse(call, error)

    def serve(self, call: Call) -> None:
        """The call's body is here: ask a worker."""
        call.task = asyncio.get_running_loop().create_task(self._serve(self._flights[call]))

    def refuse(self, call: Call, error: ApiError) -> None:
        flight = self._flights[call]
        self._answer_error(flight, error)
        self._end(flight)

    def lose(self, call: Call) -> None:
        """The client has gone: so does its request at the worker."""
        flight = self._flights.get(call)
        if flight is not None and not self._cancel(flight):
            self._end(flight)

    def cut_flights(self) -> None:
        """Ends the requests that are still in flight: with an error, and streams with an error event."""
        for call, flight in list(self._flights.items()):
            flight.cut = True
            if not self._cancel(flight):
                self.refuse(call, stopping())

    @staticmethod
    def _cancel(flight: Flight) -> bool:
        """Whether the flight's task will end it. One that was cancelled before its first step runs no line at all."""
        if flight.call.task is not None:
            flight.call.task.cancel()
        return flight.is_running

    # -- one flight ------------------------------------------------------------------------------------------------

    async def _serve(self, flight: Flight) -> None:
        call = flight.call
        flight.is_running = True
        try:
            await self._forward(flight, call.body)
        except asyncio.CancelledError:
            if not (call.disconnected or flight.cut):
                raise
            self._answer_error(flight, stopping())
        except ApiError as error:
            self._answer_error(flight, error)
        except Exception as error:
            # The top of this request's task: nothing of one request may disturb another.
            logger.error("request_crashed", request_id=flight.id.decode(), path=call.route, exc_info=error)
            self._answer_error(flight, InternalError("the gateway failed on this request: see its log"))
        finally:
            call.abort()  # of an answer that is not whole
            self._end(flight)

    def _end(self, flight: Flight) -> None:
        call = flight.call
        del self._flights[call]
        status = CLIENT_GONE if call.disconnected else flight.status
        first_byte_at = call.first_byte_at if flight.status == HTTPStatus.OK else 0.0
        self._metrics.observe(flight.model, call.route, status, flight.arrived, first_byte_at)

    async def _forward(self, flight: Flight, body: bytes) -> None:
        """Raises ApiError."""
        call, fields = flight.call, parse_fields(body)
        model, flight.session = str(fields.model), session_of(flight.headers, fields)
        headers = to_worker(call.headers, flight.headers.get(b"connection", b""))
        tried: list[str] = []
        last: ApiError | None = None
        while flight.attempts < self._max_attempts:
            replica = self._choose(flight, model, tried)
            if replica is None:
                break
            flight.attempts += 1
            flight.worker = replica.worker_id
            self.in_flight[replica.worker_id] = self.in_flight.get(replica.worker_id, 0) + 1
            exchange: Exchange | None = None
            try:
                address = (replica.host, replica.port)
                head = request_head(call.target, address, headers, flight.id, len(body))
                exchange = await self._upstream.open(address, head, body)
                if exchange.status == 503 and (state := is_turned_away(exchange)):
                    tried.append(replica.worker_id)
                    last = no_replica_ready(model, f"{replica.worker_id} is {state}")
                    continue
                flight.status = exchange.status
                flight.is_event_stream = is_event_stream(exchange.headers)
                call.start(exchange.status, answer_headers(exchange.headers, flight.answer_headers()))
                await exchange.send_to(call)
                return
            except UpstreamError as error:
                self._note_failure(flight, replica, error)
                tried.append(replica.worker_id)
                last = worker_error(replica, error)
                if isinstance(error, WorkerSilent) or call.started:
                    break  # the client has waited long enough, or has a part of this worker's answer
            finally:
                if exchange is not None:
                    self._upstream.close(exchange)
                self._land(replica)
        raise last or no_replica_ready(model, describe_workers(self._registry, model))

    def _choose(self, flight: Flight, model: str, tried: list[str]) -> Replica | None:
        replicas = self._registry.route(model)
        if replicas is None:
            raise ModelNotFound(model, self._registry.models())
        flight.model = model
        tasks = TASKS.get(flight.call.route)
        if tasks is not None and replicas:
            able = [replica for replica in replicas if replica.can(tasks)]
            if not able:
                raise task_refused(model, flight.call.route, replicas)
            replicas = tuple(able)
        turn = self._turns[model] = self._turns.get(model, -1) + 1
        view = policy.View(replicas, self.in_flight, self._rng, turn, flight.session)
        return policy.choose(self._policies.get(model, self._policy), view, tried)

    def _land(self, replica: Replica) -> None:
        left = self.in_flight[replica.worker_id] - 1
        if left:
            self.in_flight[replica.worker_id] = left
        else:
            del self.in_flight[replica.worker_id]

    def _note_failure(self, flight: Flight, replica: Replica, error: UpstreamError) -> None:
        if isinstance(error, ConnectFailed):
            self._upstream.forget((replica.host, replica.port))
            self._registry.mark_unreachable(replica.worker_id, f"{replica.host}:{replica.port} {error}")
        self._metrics.worker_error(replica.worker_id, type(error).__name__)
        logger.warning(
            "worker_failed", request_id=flight.id.decode(), worker_id=replica.worker_id, attempt=flight.attempts,
            started=flight.call.started, error=str(error),
        )  # fmt: skip

    def _answer_error(self, flight: Flight, error: ApiError) -> None:
        """Instead of an answer. One that has begun already ends so that no client takes it for a whole one:

        a stream with an error event and without ``[DONE]``, any other just ends before its length.
        """
        call = flight.call
        if call.disconnected:
            return
        if not call.started:
            flight.status = error.status
            headers = [(b"content-type", b"application/json"), *error.headers, *flight.answer_headers()]
            call.answer(error.status, headers, error.body())
            return
        logger.error("answer_cut", request_id=flight.id.decode(), worker_id=flight.worker, error=error.message)
        if flight.is_event_stream and call.is_open_ended:
            call.push(b"data: %b\n\n" % error.body(), last=True)


def is_turned_away(exchange: Exchange) -> str:
    """The state of an iChat worker that took the request at its door only to say no; "" for an engine's answer."""
    for name, value in exchange.headers:
        if name == WORKER_STATE_HEADER:
            return value.decode("latin-1")
    return ""


def is_event_stream(headers: list[Header]) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)


def task_refused(model: str, route: str, replicas: Sequence[Replica]) -> BadRequest:
    """No replica's engine does what the route is for; says which routes there are instead."""
    routes = [path for path, wanted in TASKS.items() if any(replica.can(wanted) for replica in replicas)]
    tasks = sorted({task for replica in replicas for task in replica.tasks})
    instead = f"ask {' or '.join(routes)}" if routes else "ask another model"
    return BadRequest(
        f"{model} is not made for {route}: it can {', '.join(tasks)}; {instead}", code="unsupported_task", param="model"
    )


def stopping() -> NoReplicaReady:
    return NoReplicaReady("the gateway is stopping: try again", retry_after_s=RETRY_AFTER_S)


def no_replica_ready(model: str, detail: str) -> NoReplicaReady:
    return NoReplicaReady(
        f"no replica of {model} is ready: {detail}. Try again later, or see GET /v1/admin/workers",
        retry_after_s=RETRY_AFTER_S,
    )


def describe_workers(registry: WorkerRegistry, model: str) -> str:
    """The states of a model's workers, for the one who wonders why none is ready."""
    states = [describe_worker(worker) for worker in registry.workers() if model in worker.beat.names]
    return ", ".join(states[:5]) or "its workers have gone"


def describe_worker(worker: Worker) -> str:
    if worker.state is WorkerState.SLEEPING:
        return f"{worker.id} is sleeping (POST /v1/admin/workers/{worker.id}/wake wakes it)"
    why = worker.reason[:200] if worker.state is WorkerState.FAILED else ""
    return f"{worker.id} is {worker.state}{f' ({why})' if why else ''}"


def worker_error(replica: Replica, error: UpstreamError) -> ApiError:
    """A hop's error, with the hop's name."""
    where = f"worker {replica.worker_id} ({replica.host}:{replica.port})"
    if isinstance(error, WorkerSilent):
        return WorkerTimeout(f"{where} {error}", code="worker_timeout")
    code = "bad_worker_answer" if isinstance(error, BadAnswer) else "worker_broke"
    return WorkerBroke(f"{where} {error}; try again", code=code)
