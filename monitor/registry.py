"""Who is alive: the one place that knows all workers. Pure: no clock, no socket; time comes in as ``now`` (seconds)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from config.states import GONE, WorkerState
from monitor.heartbeat import Heartbeat
from monitor.routes import Place, Routes
from utils.logger import EventLogger

MISSED_BEATS = 3
"""A worker whose last beat is older than this many of its intervals is unhealthy."""

logger = EventLogger("registry")


class WorkerIdConflict(Exception):
    """A beat claims the id of another worker that is alive. ``str()`` says at which address."""


class AddressConflict(Exception):
    """A beat claims the address of another worker that is alive. ``str()`` says whose it is, and what to do."""


class UnknownWorker(Exception):
    """No worker has this id."""


@dataclass(frozen=True, slots=True)
class Replica:
    """A place that a request for a model can be sent to."""

    worker_id: str
    host: str
    port: int
    tasks: tuple[str, ...] = ()
    """What its engine does, in vLLM's words; () for a worker that did not say."""
    capacity: int | None = None
    """Requests that its engine takes at a time; None: it did not say."""
    node: str = ""
    names: tuple[str, ...] = ()
    """Of its model: the model's own, then its aliases. Not those of adapters, which are models of their own."""

    def can(self, tasks: Iterable[str]) -> bool:
        """Whether it does one of ``tasks``."""
        return not self.tasks or any(task in self.tasks for task in tasks)


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker as the gateway sees it. ``registered_at`` and ``last_beat`` are values of the caller's clock."""

    beat: Heartbeat
    registered_at: float
    last_beat: float | None = None  # None: spawned, and has not beaten yet
    managed: bool = False
    unreachable: str = ""  # why a connection to it failed, until one succeeds
    gone_since: float | None = None  # the last beat of a process that listens no more: who does then is another one
    verdict: WorkerState | None = None  # what the gateway knows better than the last beat
    verdict_reason: str = ""
    restarts: int = 0

    @property
    def id(self) -> str:
        return self.beat.worker_id

    @property
    def address(self) -> tuple[str, int]:
        return self.beat.host, self.beat.port

    @property
    def state(self) -> WorkerState:
        """The worker's own word, unless the gateway knows better."""
        if self.verdict is not None:
            return self.verdict
        if self.unreachable and self.beat.state is WorkerState.STOPPING:
            return WorkerState.STOPPED
        if self.unreachable and self.beat.state not in GONE:
            return WorkerState.UNHEALTHY
        return self.beat.state

    @property
    def reason(self) -> str:
        if self.verdict is not None:
            return self.verdict_reason
        return self.unreachable if self.state is WorkerState.UNHEALTHY and self.unreachable else self.beat.reason

    @property
    def replica(self) -> Replica:
        beat = self.beat
        names = (beat.model_name, *beat.aliases)
        return Replica(self.id, beat.host, beat.port, beat.tasks, beat.capacity, beat.node, names)


Listener = Callable[[str, Worker | None, Worker | None], None]
"""Called with (worker_id, before, after) whenever a record changes; None: not there."""


class WorkerRegistry:
    """All workers by id. Single-threaded: to be used from one event loop."""

    def __init__(self, *, forget_after_s: float = 300.0) -> None:
        self._workers: dict[str, Worker] = {}
        self._forget_after_s = forget_after_s
        self._listeners: list[Listener] = []
        self._routes = Routes()

    # -- reading ---------------------------------------------------------------------------------------------------

    def workers(self) -> list[Worker]:
        return list(self._workers.values())

    def worker(self, worker_id: str) -> Worker:
        """Raises UnknownWorker."""
        try:
            return self._workers[worker_id]
        except KeyError:
            raise UnknownWorker(worker_id) from None

    def route(self, model: str) -> tuple[Replica, ...] | None:
        """The ready replicas of a model, () when it is known but none is ready, None when nobody knows it."""
        return self._routes.ready.get(model)

    @property
    def version(self) -> int:
        """Grows whenever something changes that routing depends on."""
        return self._routes.version

    def workers_of(self, model: str) -> list[Worker]:
        """All that have the model, ready or not."""
        return [self._workers[worker_id] for worker_id in self._routes.holders(model)]

    def names_at(self, worker_id: str) -> tuple[str, ...]:
        """The names of all that a worker has; () for one that is unknown."""
        worker = self._workers.get(worker_id)
        return worker.beat.names if worker is not None else ()

    def models(self) -> list[str]:
        """The names of all models that some worker has, ready or not, in order."""
        return list(self._routes.models())

    def own_name(self, model: str) -> str:
        """The one name of a model for all that are but other names for it (``Routes.own_name``)."""
        return self._routes.own_name(model)

    def names_of(self, model: str) -> list[str]:
        """All names of the model whose own name this is; that first."""
        return self._routes.names_of(model)

    def is_ready(self) -> bool:
        """Whether at least one model can be served."""
        return any(self._routes.ready.values())

    def subscribe(self, listener: Listener) -> None:
        self._listeners.append(listener)

    # -- what workers say ------------------------------------------------------------------------------------------

    def upsert(self, beat: Heartbeat, now: float) -> Worker:
        """Take a beat; the first of a worker registers it. Raises WorkerIdConflict or AddressConflict."""
        old = self._workers.get(beat.worker_id)
        if old is None:
            self._take_address(beat, now)
            return self._store(Worker(beat, registered_at=now, last_beat=now))
        self._refuse_double_id(old, beat, now)
        if old.address != (beat.host, beat.port):
            self._take_address(beat, now)
        # A restarted process is reachable until shown otherwise; the same one has to be reached before it is believed.
        unreachable = "" if is_new_incarnation(old.beat, beat) else old.unreachable
        return self._store(
            replace(old, beat=beat, last_beat=now, unreachable=unreachable, verdict=None, verdict_reason="")
        )

    def _refuse_double_id(self, old: Worker, beat: Heartbeat, now: float) -> None:
        if old.address != (beat.host, beat.port) and is_alive(old, now):
            raise WorkerIdConflict(
                f"worker_id {beat.worker_id!r} belongs to a living worker at {old.beat.host}:{old.beat.port}: "
                f"give the one at {beat.host}:{beat.port} its own --worker-id"
            )

    def _take_address(self, beat: Heartbeat, now: float) -> None:
        """A worker comes to an address: who was there before and is dead makes room. Raises AddressConflict.

        Two that both beat from one address would else throw each other out for ever.
        """
        others = [worker for worker in self.workers() if worker.address == (beat.host, beat.port)]
        for other in others:
            if is_alive(other, now) and not is_successor(other.beat, beat):
                raise AddressConflict(address_taken(other, beat.worker_id))
        for other in others:
            if not other.managed:
                why = other.reason or ("a later process has its port" if is_alive(other, now) else "it beats no more")
                address = f"{beat.host}:{beat.port}"
                logger.info("worker_replaced", worker_id=other.id, by=beat.worker_id, address=address, reason=why)
                self.forget(other.id)

    # -- what the gateway finds out --------------------------------------------------------------------------------

    def announce(self, beat: Heartbeat, now: float) -> Worker:
        """A managed worker that is being spawned: known, and visible as ``starting``, before its first beat."""
        old = self._workers.get(beat.worker_id)
        restarts = 0 if old is None else old.restarts + 1
        return self._store(
            Worker(beat, registered_at=now, managed=True, verdict=WorkerState.STARTING, restarts=restarts)
        )

    def adopt(self, worker_id: str) -> None:
        """Mark a worker that is already here as managed by this gateway."""
        self._change(worker_id, managed=True)

    def judge(self, worker_id: str, state: WorkerState, reason: str) -> None:
        """The gateway knows the worker's state better than its last beat does. The next beat takes this back."""
        self._change(worker_id, verdict=state, verdict_reason=reason)

    def mark_unreachable(self, worker_id: str, reason: str, *, is_gone: bool = False) -> None:
        """A connection to the worker failed: it is not routed to until one succeeds. ``is_gone``: nobody listens."""
        worker = self._workers.get(worker_id)
        knows_itself = worker is not None and worker.beat.pid is not None
        gone_since = worker.last_beat if worker is not None and is_gone and knows_itself else None
        self._change(worker_id, unreachable=reason, gone_since=gone_since)

    def mark_reachable(self, worker_id: str) -> None:
        """A connection succeeded. Where nobody listened before, a new process does, whose own beat says how it is."""
        worker = self._workers.get(worker_id)
        if worker is not None and (worker.gone_since is None or worker.gone_since != worker.last_beat):
            self._change(worker_id, unreachable="", gone_since=None)

    def expire(self, now: float) -> None:
        """Workers whose beats stopped become unhealthy; foreign ones that have been gone for long are forgotten."""
        for worker in self.workers():
            if worker.last_beat is None:
                continue
            silent_s = now - worker.last_beat
            if not worker.managed and worker.state is not WorkerState.READY and silent_s > self._forget_after_s:
                if is_overdue(worker, now):
                    self.forget(worker.id)
            elif is_overdue(worker, now) and worker.verdict is None and worker.state not in GONE:
                self.judge(
                    worker.id, WorkerState.UNHEALTHY, f"no heartbeat for {MISSED_BEATS} intervals: the worker hangs, "
                    "or cannot reach the gateway"
                )  # fmt: skip

    def forget(self, worker_id: str) -> None:
        old = self._workers.pop(worker_id, None)
        if old is not None:
            self._changed(worker_id, old, None)

    # -- keeping it up --------------------------------------------------------------------------------------------

    def _change(self, worker_id: str, **changes: object) -> None:
        old = self._workers.get(worker_id)
        if old is not None:
            self._store(replace(old, **changes))  # type: ignore[arg-type]

    def _store(self, worker: Worker) -> Worker:
        old = self._workers.get(worker.id)
        self._workers[worker.id] = worker
        self._changed(worker.id, old, worker)
        return worker

    def _changed(self, worker_id: str, old: Worker | None, new: Worker | None) -> None:
        self._routes.update(worker_id, place_of(new))
        for listener in self._listeners:
            listener(worker_id, old, new)


def place_of(worker: Worker | None) -> Place | None:
    """What of a worker routing depends on."""
    if worker is None:
        return None
    return Place(worker.beat.names, worker.replica, worker.state is WorkerState.READY)


def is_overdue(worker: Worker, now: float) -> bool:
    return worker.last_beat is not None and now - worker.last_beat > MISSED_BEATS * worker.beat.heartbeat_interval


def is_alive(worker: Worker, now: float) -> bool:
    """Whether it beats, can be reached, and has not said that it ends."""
    beats = worker.last_beat is not None and not is_overdue(worker, now)
    return beats and not worker.unreachable and worker.state not in GONE


def is_successor(old: Heartbeat, new: Heartbeat) -> bool:
    """Whether the beat comes from a process that began later on the same machine, where one alone can have a port: the
    one before is dead, though nobody has missed its beats yet.
    """
    if not new.node or new.node != old.node or old.started_at is None or new.started_at is None:
        return False
    return new.started_at > old.started_at


def address_taken(owner: Worker, worker_id: str) -> str:
    """Words for the sender of a second worker's beats. The same at each beat, so that a log says them once."""
    host, port = owner.address
    silent_s = MISSED_BEATS * owner.beat.heartbeat_interval
    return (
        f"{host}:{port} is the address of the living worker {owner.id!r}, and one address is one worker: name a "
        "server's other models in adapters of its one heartbeat, or put it into model_list as a provider; give another "
        f"server a port of its own. If {owner.id!r} is dead, {worker_id!r} is taken once no heartbeat of it came for "
        f"{silent_s:g} s: send on"
    )


def is_new_incarnation(old: Heartbeat, new: Heartbeat) -> bool:
    """Whether the beat comes from another process than the one before."""
    return (old.pid, old.started_at, old.host, old.port) != (new.pid, new.started_at, new.host, new.port)
