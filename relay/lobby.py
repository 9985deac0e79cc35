"""Lobby: a flight goes to a worker at once if one has room, else it waits for its turn here."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from config.admission import AdmissionSettings
from monitor.metrics import RelayMetrics
from monitor.registry import Replica, Worker, WorkerRegistry
from relay.admission.admission import Admission
from relay.admission.fair_queue import Entry
from relay.admission.lines import Lines
from relay.admission.waiting import priority_of, queue_notice, timeout_of
from relay.dispatch import Dispatcher
from relay.flight import Flight
from relay.routing.router import Router
from utils.errors import ApiError

SWEEP_S: Final = 1.0
"""How often those who wait are looked after: deadlines, and word to streams of where they stand."""

MAX_AT_ONCE: Final = 500
"""Requests whose time is over that are answered in one turn of the event loop: 25 ms, in which nobody gets a byte."""

GRACE_S: Final = 10.0
"""How long requests wait on for a model that has just lost its last ready replica."""


@dataclass(slots=True, eq=False)
class Waiting(Entry):
    """A flight in its line's queue."""

    flight: Flight | None = None  # None never stays: Entry's defaults come first
    told_at: float = 0.0  # when its client last heard where it stands


class Lobby:
    """Between the relay, which takes requests in, and the dispatcher, which asks workers."""

    def __init__(
        self,
        settings: AdmissionSettings,
        registry: WorkerRegistry,
        router: Router,
        dispatcher: Dispatcher,
        metrics: RelayMetrics,
        *,
        sweep_s: float = SWEEP_S,
    ) -> None:
        self._sweep_s = sweep_s
        self._lines = lines = Lines(registry)
        self.admission: Admission[Waiting] = Admission(settings, lines, self)
        self._settings = settings
        self._registry = registry
        self._router = router
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._away_since: dict[str, float] = {}
        """Lines in which requests wait, without a ready replica; time.monotonic()."""
        self._is_calling = False
        self._due: set[str] = set()
        """Models for which there may be room now."""
        self._version = registry.version
        self._sweeper: asyncio.TimerHandle | None = None
        registry.subscribe(self._on_change)

    def enter(self, flight: Flight) -> None:
        """Dispatch it, now or when it is its turn. Raises ApiError."""
        model = flight.model
        replicas = self._router.replicas(model, flight.call.route)
        admission = self.admission
        if not (admission.is_anyone_waiting and admission.has_queue(self._lines.line_of(model, flight.call.route))):
            free = self._free(model, replicas)
            if free or not replicas:
                self._dispatcher.dispatch(flight, free)
                return
        self._wait(flight)

    def _free(self, model: str, replicas: Sequence[Replica]) -> Sequence[Replica]:
        """The replicas that may get one more."""
        in_flight, capacity = self._router.in_flight, self.admission.capacity
        for replica in replicas:
            limit = capacity(model, replica)
            if limit is not None and in_flight.get(replica.worker_id, 0) >= limit:
                break
        else:
            return replicas  # the usual case, without a new list
        return [
            replica
            for replica in replicas
            if (limit := capacity(model, replica)) is None or in_flight.get(replica.worker_id, 0) < limit
        ]

    # -- waiting ---------------------------------------------------------------------------------------------------

    def _wait(self, flight: Flight) -> None:
        now, client, line = time.monotonic(), flight.client, self._lines.line_of(flight.model, flight.call.route)
        deadline = now + timeout_of(flight.headers, self._settings.timeout_of(*self._lines.names(line)))
        priority = priority_of(flight.headers, client.priority)
        entry = Waiting(client.name, priority, client.weight, now, deadline, flight.id.decode("latin-1"), flight)
        pushed_out = self.admission.enter(line, entry, now)
        flight.cancel_wait = lambda: self._leave(line, entry)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)
        if pushed_out is not None:
            self._fail(pushed_out, self.admission.full(line))

    def _leave(self, line: str, entry: Waiting) -> None:
        self.admission.leave(line, entry, time.monotonic())

    @staticmethod
    def _fail(entry: Waiting, error: ApiError) -> None:
        assert entry.flight is not None
        entry.flight.cancel_wait = None
        entry.flight.owner.fail(entry.flight, error)

    def _on_change(self, worker_id: str, old: Worker | None, new: Worker | None) -> None:
        if self._version == self._registry.version:
            return  # a beat like the one before: nobody's turn has come
        self._version = self._registry.version
        for line in [line for line in self._away_since if self._lines.replicas(line) != ()]:
            del self._away_since[line]
        for worker in (old, new):
            if worker is not None:
                self._call(worker.beat.names)
                for line in [line for name in worker.beat.names if not self._is_known(name) for line in Lines.of(name)]:
                    self.admission.forget(line)

    def _is_known(self, model: str) -> bool:
        return self._registry.route(model) is not None

    def call_next(self) -> None:
        """Flights have left their workers: whose turn is it there? Others' queues are not looked at: where a thousand
        models have one, each request would cost a thousand looks.
        """
        freed = self._router.freed
        while freed:
            if self.admission.is_anyone_waiting:
                self._call(self._registry.names_at(freed.pop()))
            else:
                freed.clear()

    def _call(self, names: Iterable[str]) -> None:
        """There may be room for these models: whose turn is it?"""
        self._due.update(names)
        if self._is_calling:  # what is called may end at once, and free a place itself
            return
        self._is_calling = True
        try:
            while self._due:
                due, self._due = self._due, set()
                for line in self.admission.in_turn(self._lines.among(self.admission.queued_lines(), due)):
                    self._call_all(line)
        finally:
            self._is_calling = False

    def _call_all(self, line: str) -> None:
        model = self._lines.model(line)
        replicas = self._lines.replicas(line)
        free = self._free(model, replicas or ())
        while free or not (replicas or self._may_return(line)):
            entry = self.admission.next(line, time.monotonic())
            if entry is None:
                return
            self._dispatch(entry, free)
            before, replicas = replicas, self._lines.replicas(line)
            free = self._free(model, free if replicas is before else replicas or ())

    def _may_return(self, line: str) -> bool:
        """Whether those who wait go on waiting though no replica is ready: one may be back in a moment."""
        if self._lines.replicas(line) is None:
            return False
        away_since = self._away_since.setdefault(line, time.monotonic())
        return time.monotonic() - away_since < GRACE_S

    def _dispatch(self, entry: Waiting, free: Sequence[Replica]) -> None:
        flight = entry.flight
        assert flight is not None
        flight.queued_s = time.monotonic() - entry.arrived
        self._dispatcher.dispatch_waiting(flight, free)

    # -- what is counted -------------------------------------------------------------------------------------------

    def landed(self, flight: Flight) -> None:
        """Its answer has ended, or been broken off: that long it kept its worker busy."""
        if self._is_known(flight.model):
            line = self._lines.line_of(flight.model, flight.call.route)
            self.admission.landed(line, time.perf_counter() - flight.sent_at)

    def queue_left(self, line: str, outcome: str, seconds: float) -> None:
        """The metrics are by model."""
        self._metrics.queue_left(self._lines.model(line), outcome, seconds)

    def lengths(self) -> dict[str, int]:
        """How many wait, by model."""
        lengths: Counter[str] = Counter()
        for line, length in self.admission.lengths().items():
            lengths[self._lines.model(line)] += length
        return lengths

    # -- every second ----------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        self._sweeper = None
        now = time.monotonic()
        late = self.admission.expired(now, MAX_AT_ONCE)
        for line, entry in late:
            self._fail(entry, self.admission.too_late(line))
        if len(late) == MAX_AT_ONCE:  # there may be more: not before others have had their turn
            self._sweeper = asyncio.get_running_loop().call_later(0, self._sweep)
            return
        for line in list(self.admission.queued_lines()):
            self._notify(line, now)
        self._call(map(self._lines.model, self.admission.queued_lines()))
        if self.admission.is_anyone_waiting:
            self._sweeper = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)

    def _notify(self, line: str, now: float) -> None:
        """Streams that have waited for long hear of it, so that nobody between takes them for dead."""
        notice_s = self._settings.queue_notice_s
        for standing in self.admission.standings(line):
            entry = standing.entry
            flight = entry.flight
            if flight is not None and flight.is_stream and now - max(entry.arrived, entry.told_at) >= notice_s:
                entry.told_at = now
                flight.tell(queue_notice(standing.position, standing.eta_s))
