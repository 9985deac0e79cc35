"""Who may go to a worker now, and who waits: a queue for every line (``lines.py``) that has no free replica."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
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

    @property
    def names(self) -> Sequence[str]:
        """Of its model: the model's own, then its aliases."""


class HasLines(Protocol):
    """What of ``Lines`` admission needs."""

    def replicas(self, line: str) -> Sequence[HasCapacity] | None:
        """The ready ones that can serve it."""

    def names(self, line: str) -> Sequence[str]:
        """All names of its model."""


class QueueListener(Protocol):
    """Who counts. Called once for every request that was in a queue or found it full."""

    def queue_left(self, line: str, outcome: str, seconds: float) -> None:
        """``outcome``: served, gone (its client), expired, refused (it never waited), pushed_out."""


class Pace:
    """How long a line's requests take at a worker."""

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
    """All queues, by line. Single-threaded: to be used from one event loop.

    ``now`` is the caller's clock in seconds, the one that ``Entry.arrived`` and ``Entry.deadline`` are of. A request
    that is let go to a worker is the caller's to count: nothing here knows what is in flight.
    """

    def __init__(self, settings: AdmissionSettings, lines: HasLines, listener: QueueListener) -> None:
        self._settings = settings
        self._lines = lines
        self._listener = listener
        self._queues: dict[str, FairQueue[E]] = {}
        """Only those in which somebody waits."""
        self._turns = 0
        self._slots: dict[str, tuple[Sequence[HasCapacity], int | None]] = {}
        """By line: the replicas that they were counted of. Only of lines in which somebody has waited."""
        self._paces: dict[str, Pace] = {}
        self._default_capacity = settings.capacity
        self._capacities = {name: model.capacity for name, model in settings.models.items() if model.capacity}

    # -- what every request asks -----------------------------------------------------------------------------------

    def capacity(self, model: str, replica: HasCapacity) -> int | None:
        """How many requests may be in flight at a replica when one more for ``model`` comes: as set, else as its worker
        says; None: as many as come.
        """
        said = replica.capacity
        own = self._own_capacity(model, replica) if self._capacities else None
        return own or self._default_capacity or (said if said and said > 0 else None)

    def _own_capacity(self, model: str, replica: HasCapacity) -> int | None:
        """One for all names of the replica's model, whichever of them it is set for; an adapter may have its own."""
        names = replica.names if model in replica.names else (model, *replica.names)
        return next((self._capacities[name] for name in names if name in self._capacities), None)

    @property
    def is_anyone_waiting(self) -> bool:
        return bool(self._queues)

    def has_queue(self, line: str) -> bool:
        """Whether somebody waits, so that whoever comes has to wait too."""
        return line in self._queues

    def landed(self, line: str, seconds: float) -> None:
        """A request has left its worker, which it kept busy for so long."""
        pace = self._paces.get(line)
        if pace is None:
            pace = self._paces[line] = Pace()
        pace.add(seconds)

    def forget(self, line: str) -> None:
        """Nobody has its model any more."""
        self._paces.pop(line, None)
        self._slots.pop(line, None)

    # -- waiting ---------------------------------------------------------------------------------------------------

    def enter(self, line: str, entry: E, now: float) -> E | None:
        """Let a request wait. Returns the one that had to leave for it, which is to be answered ``full(line)``.

        Raises TooManyRequests where the queue is full, QueueTimeout where the request could not be served in time.
        """
        queue = self._queues.get(line) or self._new_queue(line)
        eta = self._eta_if_late(line, queue, entry, now)
        if entry.deadline <= now or eta is not None:
            self._listener.queue_left(line, "refused", 0.0)
            raise self.too_late(line, eta)
        try:
            pushed_out = queue.push(entry)
        except QueueFull:
            self._listener.queue_left(line, "refused", 0.0)
            raise self.full(line) from None
        self._queues[line] = queue
        if pushed_out is not None:
            self._listener.queue_left(line, "pushed_out", now - pushed_out.arrived)
        return pushed_out

    def _new_queue(self, line: str) -> FairQueue[E]:
        queue: FairQueue[E] = FairQueue(self._settings.max_queue_of(*self._lines.names(line)))
        queue.turn = self._next_turn()  # behind those in which somebody waits already
        return queue

    def _next_turn(self) -> int:
        self._turns += 1
        return self._turns

    def _eta_if_late(self, line: str, queue: FairQueue[E], entry: E, now: float) -> float | None:
        """When its turn would come, if that is after its deadline. Its place is looked for among all keys, and so only
        where the last of all places would be too late.
        """
        latest = self.eta_s(line, len(queue))
        if latest is None or now + latest <= entry.deadline:
            return None
        eta = self.eta_s(line, queue.ahead_of(entry))
        return eta if eta is not None and now + eta > entry.deadline else None

    def next(self, line: str, now: float) -> E | None:
        """A replica has room: whose turn it is, who waits no longer; None when nobody does."""
        queue = self._queues.get(line)
        entry = queue.pop() if queue is not None else None
        if queue is None or entry is None:
            return None
        queue.turn = self._next_turn()
        self._drop_empty(line, queue)
        self._listener.queue_left(line, "served", now - entry.arrived)
        return entry

    def leave(self, line: str, entry: E, now: float) -> bool:
        """The client does not wait any more. Whether it waited until now: its turn may have come just before."""
        return self._remove(line, entry, "gone", now)

    def expired(self, now: float, most: int) -> list[tuple[str, E]]:
        """Those whose deadline has passed, by line, at most so many; they wait no longer and are to be answered
        ``too_late(line)``.

        O(n): to be called every second or so, instead of a timer for each.
        """
        all_late = ((line, entry) for line, queue in self._queues.items() for entry in queue if entry.deadline <= now)
        late = list(islice(all_late, most))
        for line, entry in late:
            self._remove(line, entry, "expired", now)
        return late

    def _remove(self, line: str, entry: E, outcome: str, now: float) -> bool:
        queue = self._queues.get(line)
        if queue is None or not queue.remove(entry):
            return False
        self._drop_empty(line, queue)
        self._listener.queue_left(line, outcome, now - entry.arrived)
        return True

    def _drop_empty(self, line: str, queue: FairQueue[E]) -> None:
        if not queue:
            del self._queues[line]

    # -- how long it takes -----------------------------------------------------------------------------------------

    def slots(self, line: str) -> int | None:
        """How many requests of a line run at once; 0 while no replica is ready, None: as many as come."""
        replicas = self._lines.replicas(line) or ()
        counted, slots = self._slots.get(line, (None, None))
        if counted is not replicas:  # the same tuple is of the same replicas: they are not counted for every request
            name = self._lines.names(line)[0]
            capacities = [self.capacity(name, replica) for replica in replicas]
            slots = None if None in capacities else sum(each or 0 for each in capacities)
            self._slots[line] = replicas, slots
        return slots

    def eta_s(self, line: str, position: int) -> float | None:
        """Seconds until the request at ``position`` (0 is next) is let go, if all slots are busy now.

        ``slots`` requests that take ``pace`` each end ``slots / pace`` times a second. None: nobody knows.
        """
        pace, slots = self._paces.get(line), self.slots(line)
        return (position + 1) * pace.seconds / slots if pace and slots else None

    def retry_after_s(self, line: str) -> int:
        """When a request that found no place should come again: when those that wait now are gone, or one that runs."""
        eta = self.eta_s(line, max(0, self.waiting(line) - 1))
        return UNKNOWN_RETRY_S if eta is None else min(max(math.ceil(eta), MIN_RETRY_S), MAX_RETRY_S)

    def waiting(self, line: str) -> int:
        return len(self._queues.get(line, ()))

    # -- what is answered and shown --------------------------------------------------------------------------------

    def full(self, line: str) -> TooManyRequests:
        """For a request that finds the queue full, or has to leave it for another one."""
        seconds = self.retry_after_s(line)
        return TooManyRequests(
            f"too many requests for {line} wait already ({self.waiting(line)}): try again in {seconds} s",
            code="queue_full",
            retry_after_s=seconds,
        )

    def too_late(self, line: str, eta_s: float | None = None) -> QueueTimeout:
        """For a request that has waited, or by ``eta_s`` would wait, longer than it may."""
        seconds = self.retry_after_s(line)
        why = f"no replica of {line} had room in the time that the request may wait"
        if eta_s is not None:
            why = f"a request for {line} waits about {math.ceil(eta_s)} s now, longer than this one may"
        return QueueTimeout(
            f"{why}: try again in {seconds} s, or let it wait longer with the header x-ichat-timeout-s",
            retry_after_s=seconds,
        )

    def standings(self, line: str, most: int | None = None) -> list[Standing[E]]:
        """All who wait, in order, or the first so many. One pass for a whole queue: to be asked for once a second, not
        by every request.
        """
        queue = self._queues.get(line)
        first, entries = self.eta_s(line, 0), queue.order() if queue else ()
        return [
            Standing(entry, position, None if first is None else first * (position + 1))
            for position, entry in enumerate(islice(entries, most))
        ]

    def lengths(self) -> dict[str, int]:
        """How many wait, by line. To be asked in any thread."""
        return {line: len(queue) for line, queue in list(self._queues.items())}

    def queued_lines(self) -> Collection[str]:
        """Those in which somebody waits, as they are now."""
        return self._queues.keys()

    def in_turn(self, lines: Iterable[str]) -> list[str]:
        """Those of the lines in which somebody waits, the one that was served longest ago first: lines may share a
        worker, as those of adapters do, and each is to have its turn there.
        """
        return sorted((line for line in lines if line in self._queues), key=lambda line: self._queues[line].turn)

    def view(self, now: float) -> dict[str, Any]:
        """For the admin API: the lines in which requests wait, and the first of these."""
        return {line: self._view_of(line, queue, now) for line, queue in self._queues.items()}

    def _view_of(self, line: str, queue: FairQueue[E], now: float) -> dict[str, Any]:
        pace = self._paces.get(line)
        return {
            "waiting": len(queue),
            "max_queue": queue.limit,
            "slots": self.slots(line),
            "mean_seconds": round(pace.seconds, 3) if pace else None,
            "by_key": dict(queue.count_keys()),
            "queue": [view_of(standing, now) for standing in self.standings(line, MAX_SHOWN)],
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
