"""Who may go to a worker now, and who waits: a queue for every model that has no free replica."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol

from config.admission import AdmissionSettings
from relay.admission.fair_queue import E, Entry, FairQueue, QueueFull
from utils.errors import QueueTimeout, TooManyRequests

MIN_RETRY_S: Final = 1
MAX_RETRY_S: Final = 60
"""Clients' libraries do not come again at all where they would have to wait longer than this."""
UNKNOWN_RETRY_S: Final = 5
"""When to come again while nobody knows how long requests take."""
RECENT: Final = 20
"""Of about so many requests the mean time is taken; the newest counts most."""
MAX_SHOWN: Final = 100
"""How many of a queue's requests the admin API shows."""


class HasCapacity(Protocol):
    """A replica, as far as admission cares."""

    @property
    def capacity(self) -> int | None:
        """How many requests it runs at once, as its worker says; None: it did not say."""


Route = Callable[[str], Sequence[HasCapacity] | None]
"""The ready replicas of a model."""


class QueueListener(Protocol):
    """Who counts. Called once for every request that was in a queue or found it full."""

    def queue_left(self, model: str, outcome: str, seconds: float) -> None:
        """``outcome``: served, gone (its client), expired, refused (it never waited), pushed_out."""


class Pace:
    """How long a model's requests take at a worker."""

    __slots__ = ("count", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.count = 0

    def add(self, seconds: float) -> None:
        # The plain mean of the first ones, then an exponential one: the first of all must not weigh for long.
        count = self.count
        if count < RECENT:
            self.count = count = count + 1
        self.seconds += (seconds - self.seconds) / count


@dataclass(frozen=True, slots=True)
class Standing(Generic[E]):
    """Where a request stands. ``position`` 0 is next; ``eta_s`` None: nobody knows."""

    entry: E
    position: int
    eta_s: float | None


class Admission(Generic[E]):
    """All queues, by model. Single-threaded: to be used from one event loop.

    ``now`` is the caller's clock in seconds, the one that ``Entry.arrived`` and ``Entry.deadline`` are of. A request
    that is let go to a worker is the caller's to count: nothing here knows what is in flight.
    """

    def __init__(self, settings: AdmissionSettings, route: Route, listener: QueueListener) -> None:
        self._settings = settings
        self._route = route
        self._listener = listener
        self._queues: dict[str, FairQueue[E]] = {}
        """Only those in which somebody waits."""
        self._paces: dict[str, Pace] = {}
        self._default_capacity = settings.capacity
        self._capacities = {name: model.capacity for name, model in settings.models.items() if model.capacity}

    # -- what every request asks -----------------------------------------------------------------------------------

    def capacity(self, model: str, replica: HasCapacity) -> int | None:
        """How many requests may be in flight at a replica: as set, else as its worker says; None: as many as come."""
        said = replica.capacity
        return self._capacities.get(model, self._default_capacity) or (said if said and said > 0 else None)

    @property
    def is_anyone_waiting(self) -> bool:
        return bool(self._queues)

    def has_queue(self, model: str) -> bool:
        """Whether somebody waits, so that whoever comes has to wait too."""
        return model in self._queues

    def landed(self, model: str, seconds: float) -> None:
        """A request has left its worker, which it kept busy for so long."""
        pace = self._paces.get(model)
        if pace is None:
            pace = self._paces[model] = Pace()
        pace.add(seconds)

    # -- waiting ---------------------------------------------------------------------------------------------------

    def enter(self, model: str, entry: E, now: float) -> E | None:
        """Let a request wait. Returns the one that had to leave for it, which is to be answered ``full(model)``.

        Raises TooManyRequests where the queue is full, QueueTimeout where the request could not be served in time.
        """
        queue = self._queues.get(model) or FairQueue(self._settings.max_queue_of(model))
        eta = self.eta_s(model, queue.ahead_of(entry))
        if entry.deadline <= now or (eta is not None and now + eta > entry.deadline):
            self._listener.queue_left(model, "refused", 0.0)
            raise self.too_late(model, eta)
        try:
            pushed_out = queue.push(entry)
        except QueueFull:
            self._listener.queue_left(model, "refused", 0.0)
            raise self.full(model) from None
        self._queues[model] = queue
        if pushed_out is not None:
            self._listener.queue_left(model, "pushed_out", now - pushed_out.arrived)
        return pushed_out

    def next(self, model: str, now: float) -> E | None:
        """A replica has room: whose turn it is, who waits no longer; None when nobody does."""
        queue = self._queues.get(model)
        entry = queue.pop() if queue is not None else None
        if queue is None or entry is None:
            return None
        # Last in line: models may share a worker, by aliases and adapters, and each is to have its turn there.
        self._queues[model] = self._queues.pop(model)
        self._drop_empty(model, queue)
        self._listener.queue_left(model, "served", now - entry.arrived)
        return entry

    def leave(self, model: str, entry: E, now: float) -> bool:
        """The client does not wait any more. Whether it waited until now: its turn may have come just before."""
        return self._remove(model, entry, "gone", now)

    def expired(self, now: float) -> list[tuple[str, E]]:
        """Those whose deadline has passed, by model; they wait no longer and are to be answered ``too_late(model)``.

        O(n): to be called every second or so, instead of a timer for each.
        """
        late = [(model, entry) for model, queue in self._queues.items() for entry in queue if entry.deadline <= now]
        for model, entry in late:
            self._remove(model, entry, "expired", now)
        return late

    def _remove(self, model: str, entry: E, outcome: str, now: float) -> bool:
        queue = self._queues.get(model)
        if queue is None or not queue.remove(entry):
            return False
        self._drop_empty(model, queue)
        self._listener.queue_left(model, outcome, now - entry.arrived)
        return True

    def _drop_empty(self, model: str, queue: FairQueue[E]) -> None:
        if not queue:
            del self._queues[model]

    # -- how long it takes -----------------------------------------------------------------------------------------

    def slots(self, model: str) -> int | None:
        """How many requests of a model run at once; 0 while no replica is ready, None: as many as come."""
        capacities = [self.capacity(model, replica) for replica in self._route(model) or ()]
        return None if None in capacities else sum(each or 0 for each in capacities)

    def eta_s(self, model: str, position: int) -> float | None:
        """Seconds until the request at ``position`` (0 is next) is let go, if all slots are busy now.

        ``slots`` requests that take ``pace`` each end ``slots / pace`` times a second. None: nobody knows.
        """
        pace, slots = self._paces.get(model), self.slots(model)
        return (position + 1) * pace.seconds / slots if pace and slots else None

    def retry_after_s(self, model: str) -> int:
        """When a request that found no place should come again: when those that wait now are gone, or one that runs."""
        eta = self.eta_s(model, max(0, self.waiting(model) - 1))
        return UNKNOWN_RETRY_S if eta is None else min(max(math.ceil(eta), MIN_RETRY_S), MAX_RETRY_S)

    def waiting(self, model: str) -> int:
        return len(self._queues.get(model, ()))

    # -- what is answered and shown --------------------------------------------------------------------------------

    def full(self, model: str) -> TooManyRequests:
        """For a request that finds the queue full, or has to leave it for another one."""
        seconds = self.retry_after_s(model)
        return TooManyRequests(
            f"too many requests for {model} wait already ({self.waiting(model)}): try again in {seconds} s",
            code="queue_full",
            retry_after_s=seconds,
        )

    def too_late(self, model: str, eta_s: float | None = None) -> QueueTimeout:
        """For a request that has waited, or by ``eta_s`` would wait, longer than it may."""
        seconds = self.retry_after_s(model)
        why = f"no replica of {model} had room in the time that the request may wait"
        if eta_s is not None:
            why = f"a request for {model} waits about {math.ceil(eta_s)} s now, longer than this one may"
        return QueueTimeout(
            f"{why}: try again in {seconds} s, or let it wait longer with the header x-ichat-timeout-s",
            retry_after_s=seconds,
        )

    def standings(self, model: str) -> list[Standing[E]]:
        """All who wait, in order. One pass for a whole queue: to be asked for once a second, not by every request."""
        queue = self._queues.get(model)
        first, entries = self.eta_s(model, 0), queue.order() if queue else ()
        return [
            Standing(entry, position, None if first is None else first * (position + 1))
            for position, entry in enumerate(entries)
        ]

    def lengths(self) -> dict[str, int]:
        """How many wait, by model."""
        return {model: len(queue) for model, queue in self._queues.items()}

    def queued_models(self) -> list[str]:
        return list(self._queues)

    def view(self, now: float) -> dict[str, Any]:
        """For the admin API: the models that requests wait for, and the first of these."""
        return {model: self._view_of(model, queue, now) for model, queue in self._queues.items()}

    def _view_of(self, model: str, queue: FairQueue[E], now: float) -> dict[str, Any]:
        pace = self._paces.get(model)
        return {
            "waiting": len(queue),
            "max_queue": queue.limit,
            "slots": self.slots(model),
            "mean_seconds": round(pace.seconds, 3) if pace else None,
            "by_key": dict(queue.count_keys()),
            "queue": [view_of(standing, now) for standing in self.standings(model)[:MAX_SHOWN]],
        }


def view_of(standing: Standing[E], now: float) -> dict[str, Any]:
    entry: Entry = standing.entry
    return {
        "position": standing.position + 1,
        "eta_s": None if standing.eta_s is None else round(standing.eta_s, 1),
        "request_id": entry.request_id,
        "key": entry.key,
        "priority": entry.priority,
        "waited_s": round(now - entry.arrived, 1),
        "gives_up_in_s": round(entry.deadline - now, 1),
    }
