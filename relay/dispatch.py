"""Dispatcher: asks a replica for a flight's answer, and another one where that may be."""

import asyncio
import random
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from config.settings import ServerSettings
from monitor.metrics import RelayMetrics
from monitor.registry import Replica, WorkerRegistry
from relay.flight import Flight
from relay.headers import Header, is_event_stream, lines_to_worker, request_head, to_worker
from relay.providers.fallbacks import rename
from relay.routing.breaker import Breakers
from relay.routing.policy import untried
from relay.routing.router import Placing, Router
from relay.streams.express import Express
from relay.streams.resume import Continuation, Ending, Unresumable, continuation
from relay.streams.splice import Splice
from relay.streams.unresumable import CHAT, COMPLETION
from relay.tally import Tally
from relay.upstream.exchange import ConnectFailed, Exchange, UpstreamError, WorkerSilent
from relay.upstream.pool import Upstream
from relay.usage import usage_of
from relay.words import describe_workers, no_replica_ready, out_of_time, worker_error, worker_status
from utils.errors import ApiError, WorkerBroke
from utils.logger import EventLogger

WORKER_STATE_HEADER: Final = b"x-ichat-worker-state"
"""An iChat worker's door says with it that the answer is its own, not the engine's: it takes nothing now."""
JUDGED: Final = frozenset({400, 404, 413})
RESUMABLE: Final = frozenset({CHAT, COMPLETION})
NO_RETRY_HEADER: Final = b"x-ichat-no-retry"
BACK_OFF_S: Final = 0.05
"""Before the second attempt at most; twice as long before each further one. Jittered, down to nothing."""

logger = EventLogger("relay")


class Dispatcher:
    """What may be tried again, and how often, is in doc/reliability.md."""

    def __init__(
        self,
        registry: WorkerRegistry,
        upstream: Upstream,
        router: Router,
        breakers: Breakers,
        metrics: RelayMetrics,
        settings: ServerSettings,
        rng: random.Random,
    ) -> None:
        self._registry = registry
        self._upstream = upstream
        self._router = router
        self._breakers = breakers
        self._metrics = metrics
        self._max_attempts = settings.max_attempts
        self._keep_bytes = settings.resume_kb * 1024
        self._rng = rng

    def dispatch(self, flight: Flight, replicas: Sequence[Replica]) -> None:
        """Ask one of the replicas. Raises ApiError when there is none that it has not failed at."""
        replica = self._router.choose(flight, replicas)
        if replica is None and flight.asked is not None:
            raise cannot_go_on(flight, f"no other replica of {flight.model} is ready")
        if replica is None:
            states = describe_workers(self._registry, flight.model, flight.call.route)
            raise flight.last_error or no_replica_ready(flight.model, states)
        flight.pilot = self
        flight.attempts += 1
        flight.worker = replica.worker_id
        flight.sent_at = time.perf_counter()
        call, address = flight.call, (replica.host, replica.port)
        upload = flight.upload
        length = len(flight.body) if upload is None else upload.length
        head = request_head(call.target, address, forwarded(flight), flight.id, length)
        flight.exchange = self._upstream.open(address, head, flight.body, flight, is_fresh=is_final(flight))
        if upload is not None:
            upload.go_to(flight.exchange)

    def limit(self, flight: Flight, seconds: float) -> None:
        """The client waits no longer than this for the first byte of its answer, wherever that comes from."""
        flight.timer = asyncio.get_running_loop().call_later(seconds, self._give_up, flight, seconds)

    @staticmethod
    def _give_up(flight: Flight, seconds: float) -> None:
        if not flight.pieces:  # a head alone is kept back, and no answer yet: engines send it before they begin
            flight.owner.fail(flight, out_of_time(flight.worker, seconds))

    def land(self, flight: Flight) -> None:
        """It has no business at a worker any more: the end of an answer, or of an attempt."""
        self.hang_up(flight)
        placing, flight.placing = flight.placing, None
        if placing is not None:
            self._router.land(placing)
            if placing.cached and flight.pieces:
                self._router.learn(flight, placing, usage_of(flight.tail()))

    def hang_up(self, flight: Flight) -> None:
        """The answer is not wanted, but the flight stays at the worker."""
        exchange, flight.exchange = flight.exchange, None
        if exchange is not None:
            self._upstream.close(exchange)

    # -- what the worker answers -----------------------------------------------------------------------------------

    def take_head(self, flight: Flight, exchange: Exchange) -> None:
        placing = flight.placing
        assert placing is not None
        if exchange.status >= 500:
            if self._goes_elsewhere(flight, exchange, placing.replica):
                return
        else:
            self._breakers.succeeded(flight.worker)
        streams = exchange.status == 200 and exchange.written is None and is_event_stream(exchange.headers)
        if flight.asked is not None:
            self._splice(flight, flight.asked, exchange, streams=streams)
            return
        if exchange.status in JUDGED and flight.owner.may_judge(flight, exchange.status):
            flight.held, flight.body_held = (exchange.status, exchange.headers), b""
            return
        express: Express | None = None
        if streams and flight.call.route in RESUMABLE and self._keep_bytes and not is_encoded(exchange.headers):
            flight.tape = express = Express(self._keep_bytes, flight.call, flight.crash)
        if exchange.written is not None and not flight.is_told:
            flight.begin_whole(exchange.written, exchange.buffered)
            return
        flight.begin(exchange.status, exchange.headers, streams=streams)
        if express is not None and flight.call.is_chunked:
            exchange.shortcut = express.ride

    def _splice(self, flight: Flight, asked: Continuation, exchange: Exchange, *, streams: bool) -> None:
        """Another replica takes a broken stream up, or refuses to."""
        assert flight.tape is not None
        if not streams:
            error = WorkerBroke(f"worker {flight.worker} answered {exchange.status} when it was to go on with a stream")
            flight.owner.fail(flight, error)
            return
        events = flight.tape.events
        flight.tape = Splice(asked, flight.tape.passed, self._keep_bytes)
        flight.tape.events = events

    def _goes_elsewhere(self, flight: Flight, exchange: Exchange, replica: Replica) -> bool:
        """Whether another replica is asked instead of passing on this one's 5xx."""
        if state := turned_away(exchange.headers):
            flight.last_error = no_replica_ready(flight.model, f"{flight.worker} is {state}")
            if flight.upload is not None:
                flight.owner.fail(flight, flight.last_error)
            else:
                self._try_another(flight)
            return True
        self._fail_circuit(replica)
        if is_final(flight):
            return False
        has_another = self._has_another(flight)
        if not has_another and not flight.owner.may_fall_back(flight):
            return False
        self._metrics.worker_error(replica.worker_id, f"status {exchange.status}")
        flight.last_error = worker_status(replica, exchange.status)
        if has_another:
            self._try_another(flight)
        else:
            flight.owner.fail(flight, flight.last_error)
        return True

    def _has_another(self, flight: Flight) -> bool:
        return self._may_try(flight) and bool(self._others(flight))

    def _others(self, flight: Flight) -> Sequence[Replica]:
        """Those that it was not at yet."""
        tried = {*flight.tried, flight.worker}
        try:
            replicas = self._router.replicas(flight.model, flight.call.route)
        except ApiError:  # the last of them has gone
            return []
        return untried(replicas, tried)

    def _may_try(self, flight: Flight) -> bool:
        return flight.attempts - flight.first_attempt < self._max_attempts

    def take_first(self, placing: Placing) -> None:
        """The first piece of an answer is here: its prompt is read. (The head alone engines send before that.)"""
        self._router.has_begun(placing)

    def take_error(self, flight: Flight, error: UpstreamError) -> None:
        assert flight.placing is not None
        replica = flight.placing.replica
        self._note_failure(flight, replica, error)
        flight.last_error = worker_error(replica, error)
        was_sent = not isinstance(error, ConnectFailed)
        if flight.pieces:  # the client has a part of the answer
            self._go_on(flight)
        elif flight.upload is not None or isinstance(error, WorkerSilent) or (was_sent and is_final(flight)):
            self.land(flight)
            flight.owner.fail(flight, flight.last_error)
        else:
            self._try_another(flight)

    def _go_on(self, flight: Flight) -> None:
        """An answer has begun, and broke: a stream may go on at another replica (relay/streams/resume.py)."""
        next_step = self._next_step(flight)
        uncounted = next_step.uncounted if isinstance(next_step, Continuation) else ""
        if not (uncounted and self._count(flight, uncounted)):
            self._take_step(flight, next_step)

    def _count(self, flight: Flight, text: str) -> bool:
        """Whether another replica is asked first how many tokens that is."""
        others = self._others(flight)
        if others:
            self.land(flight)
            replica = self._rng.choice(others)
            told = partial(self._go_on_counted, flight)
            tally = Tally(self._upstream, (replica.host, replica.port), flight.model, text, told)
            flight.cancel_wait = tally.cancel
        return bool(others)

    def _go_on_counted(self, flight: Flight, count: int | None) -> None:
        flight.cancel_wait = None
        try:
            self._take_step(flight, self._next_step(flight, count))
        except Exception as error:
            flight.owner.crash(flight, error)

    def _take_step(self, flight: Flight, next_step: Continuation | Ending | Unresumable) -> None:
        if isinstance(next_step, Continuation):
            logger.info("stream_goes_on", request_id=flight.id.decode(), worker_id=flight.worker)
            self._metrics.stream_went_on(flight.model)
            flight.asked, flight.body = next_step, next_step.body
            self._try_another(flight)
            return
        self.land(flight)
        if isinstance(next_step, Ending):
            flight.call.push(next_step.events, last=True)
            flight.owner.end(flight)
            return
        flight.owner.fail(flight, cannot_go_on(flight, next_step.reason))

    def _next_step(self, flight: Flight, counted: int | None = None) -> Continuation | Ending | Unresumable:
        tape = flight.tape
        if tape is None:
            return Unresumable("")
        if tape.is_done or tape.has_failed:
            return Ending(b"")
        if forbids_retry(flight):
            return Unresumable("the header x-ichat-no-retry forbids it")
        if not self._may_try(flight):
            return Unresumable(f"it was tried at {flight.attempts} already")
        if not tape.is_resumable:
            return Unresumable("it is longer than server_settings.resume_kb")
        has_moved = flight.first_attempt > 0  # to another model, whose name its body has then
        body = rename(flight.call.body, flight.model) if has_moved else flight.call.body
        return continuation(flight.call.route, body, tape.passed, counted)

    def _note_failure(self, flight: Flight, replica: Replica, error: UpstreamError) -> None:
        if isinstance(error, ConnectFailed):
            self._upstream.forget((replica.host, replica.port))
            reason = f"{replica.host}:{replica.port} {error}"
            self._registry.mark_unreachable(replica.worker_id, reason, is_gone=error.refused)
        self._fail_circuit(replica)
        self._metrics.worker_error(replica.worker_id, type(error).__name__)
        logger.warning(
            "worker_failed", request_id=flight.id.decode(), worker_id=replica.worker_id, attempt=flight.attempts,
            started=flight.has_answer, error=str(error),
        )  # fmt: skip

    def _fail_circuit(self, replica: Replica) -> None:
        is_known = bool(self._registry.names_at(replica.worker_id))  # of one that has gone nothing is kept
        if is_known and self._breakers.failed(replica.worker_id, time.monotonic()):
            logger.warning("circuit_opened", worker_id=replica.worker_id)

    def _try_another(self, flight: Flight) -> None:
        """After a while that keeps many requests of a dead replica from arriving at the next one all at once."""
        assert flight.last_error is not None
        flight.tried += (flight.worker,)
        flight.held = None
        self.land(flight)
        if not flight.pieces:
            flight.has_answer, flight.tape = False, None
        if not self._may_try(flight):
            flight.owner.fail(flight, flight.last_error)
            return
        delay_s = self._rng.random() * BACK_OFF_S * 2 ** (flight.attempts - 1)
        timer = asyncio.get_running_loop().call_later(delay_s, self.dispatch_waiting, flight)
        flight.cancel_wait = timer.cancel

    def dispatch_waiting(self, flight: Flight, preferred: Sequence[Replica] = ()) -> None:
        """Of a flight that has waited, so that nobody above hears of an error. ``preferred``: to choose among; none:
        all of the model's replicas.
        """
        flight.cancel_wait = None
        try:
            replicas = self._router.replicas(flight.model, flight.call.route)
            self.dispatch(flight, preferred or replicas)
        except ApiError as error:
            flight.owner.fail(flight, error)
        except Exception as error:
            flight.owner.crash(flight, error)


def cannot_go_on(flight: Flight, reason: str) -> WorkerBroke:
    """Of a stream that broke. ``reason``: why no other replica goes on with it; "" where none could have."""
    assert flight.last_error is not None
    error = flight.last_error
    why = f"; the stream cannot go on at another one: {reason}" if reason else ""
    return WorkerBroke(f"{error.message.removesuffix('; try again')}{why}", code=error.code)


def forwarded(flight: Flight) -> bytes:
    """The lines of its head that a worker gets; of a head that is known, made once."""
    call = flight.call
    if call.known is not None and call.known.forwarded and flight.trace is None:
        return call.known.forwarded
    headers = to_worker(call.headers)
    if flight.trace is not None:
        return lines_to_worker(flight.trace.replace(headers))
    made = lines_to_worker(headers)
    if call.known is not None:
        call.known.forwarded = made
    return made


def is_final(flight: Flight) -> bool:
    """Whether no second replica is to be asked once this one has the request."""
    return flight.upload is not None or forbids_retry(flight)


def forbids_retry(flight: Flight) -> bool:
    return flight.headers.get(NO_RETRY_HEADER, b"0").lower() not in (b"0", b"false")


def turned_away(headers: list[Header]) -> str:
    """The state of an iChat worker that took the request at its door only to say no; "" for an engine's answer."""
    return next((value.decode("latin-1") for name, value in headers if name == WORKER_STATE_HEADER), "")


def is_encoded(headers: list[Header]) -> bool:
    return any(name == b"content-encoding" for name, _ in headers)
