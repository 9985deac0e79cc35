"""The order in which one model's waiting requests are served. Pure: no clock, no I/O.

By priority class first. Within a class the keys share by weight, by start-time fair queueing (Goyal, Vin, Cheng:
"Start-time Fair Queueing", SIGCOMM 1996), every request counting as one: a key's requests have start tags 1/weight
apart, the smallest tag is served next, and virtual time is the tag served last. A key that comes back starts at
virtual time, so idleness saves up nothing. Within a key arrival decides.

A tag is given when a request gets to the head of its key's line, not when it arrives: a request that leaves the middle
of the line leaves no gap. The line of a key that has just been served its last request stays in the round until its
next tag's turn, so that a key which asks for one request at a time gets no more than one which queues hundreds.
"""

import heapq
import math
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar


@dataclass(slots=True, eq=False)
class Entry:
    """A waiting request. Times are values of the caller's clock, in seconds."""

    key: str  # the name of the client's key
    priority: int  # the class; 0 is the most urgent
    weight: float  # of the key, above 0
    arrived: float
    deadline: float
    request_id: str = ""


E = TypeVar("E", bound=Entry)


class QueueFull(Exception):
    """There is no room, and nobody waits who has less right to it."""


class Line(Generic[E]):
    """One key's requests of one class, and ``start``, the start tag of the first."""

    __slots__ = ("entries", "key", "start")

    def __init__(self, key: str, start: float) -> None:
        self.key = key
        self.start = start
        self.entries: OrderedDict[E, None] = OrderedDict()

    @property
    def last(self) -> E:
        return next(reversed(self.entries))

    @property
    def share(self) -> float:
        """How much waits, by the weight of the key."""
        return len(self.entries) / self.last.weight if self.entries else 0.0

    def count_until(self, tag: float) -> int:
        """How many of its requests have start tags of at most ``tag``."""
        if not self.entries or tag < self.start:
            return 0
        return min(len(self.entries), math.floor((tag - self.start) * self.last.weight) + 1)


class Round(Generic[E]):
    """One priority class. Every line is in ``_heap`` once, empty ones too; equal tags are served in turn."""

    def __init__(self) -> None:
        self._lines: dict[str, Line[E]] = {}
        self._heap: list[tuple[float, int, Line[E]]] = []
        self._virtual_time = 0.0
        self._turns = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, entry: E) -> bool:
        line = self._lines.get(entry.key)
        return line is not None and entry in line.entries

    def __iter__(self) -> Iterator[E]:
        for line in self._lines.values():
            yield from line.entries

    def push(self, entry: E) -> None:
        line = self._lines.get(entry.key)
        if line is None:
            line = self._lines[entry.key] = Line(entry.key, self._virtual_time)
            heapq.heappush(self._heap, (line.start, self._next_turn(), line))
        line.entries[entry] = None
        self._size += 1

    def pop(self) -> E:
        """The next. Raises IndexError when there is none."""
        while True:
            start, _, line = self._heap[0]
            if line.entries:
                break
            heapq.heappop(self._heap)
            del self._lines[line.key]
        entry, _ = line.entries.popitem(last=False)
        self._virtual_time = start
        line.start = start + 1 / entry.weight
        heapq.heapreplace(self._heap, (line.start, self._next_turn(), line))
        self._size -= 1
        return entry

    def remove(self, entry: E) -> None:
        """Raises KeyError."""
        del self._lines[entry.key].entries[entry]
        self._size -= 1

    def order(self) -> Iterator[E]:
        """All, in the order in which they would be served if nothing else came."""
        heap = [(start, turn, line, iter(line.entries)) for start, turn, line in self._heap]
        turns = self._turns
        while heap:
            start, _, line, entries = heap[0]
            entry = next(entries, None)
            if entry is None:
                heapq.heappop(heap)
                continue
            turns += 1
            heapq.heapreplace(heap, (start + 1 / entry.weight, turns, line, entries))
            yield entry

    def ahead_of(self, newcomer: E) -> int:
        """How many would be served before ``newcomer``, which is not here yet. O(keys)."""
        own = self._lines.get(newcomer.key)
        before = len(own.entries) if own else 0
        tag = (own.start if own else self._virtual_time) + before / newcomer.weight
        return before + sum(line.count_until(tag) for line in self._lines.values() if line is not own)

    def longest(self) -> Line[E]:
        """The line that waits with the most, by weight. O(keys)."""
        return max(self._lines.values(), key=lambda line: line.share)

    def share_with(self, newcomer: E) -> float:
        """What the share of the newcomer's key would be with it."""
        line = self._lines.get(newcomer.key)
        return ((len(line.entries) if line else 0) + 1) / newcomer.weight

    def count_keys(self) -> Counter[str]:
        return Counter({line.key: len(line.entries) for line in self._lines.values() if line.entries})

    def _next_turn(self) -> int:
        self._turns += 1
        return self._turns


class FairQueue(Generic[E]):
    """At most ``limit`` waiting requests. ``push``, ``pop`` and ``remove`` take O(log keys)."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.turn = 0
        """When it was last served, among others that share its workers: for who has them all."""
        self._rounds: dict[int, Round[E]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, entry: E) -> bool:
        round_ = self._rounds.get(entry.priority)
        return round_ is not None and entry in round_

    def __iter__(self) -> Iterator[E]:
        """All, in no order."""
        for round_ in self._rounds.values():
            yield from round_

    def push(self, entry: E) -> E | None:
        """Take a request in. Returns the one that had to leave for it. Raises QueueFull.

        In a full queue room is made by the least urgent class, in which the last request of the key that waits with
        the most goes: for a newcomer of a more urgent class, and for one of the same class whose key still waits with
        no more than that one afterwards. So neither many unimportant requests nor one greedy key shut the others out.
        """
        pushed_out = self._make_room(entry) if self._size >= self.limit else None
        round_ = self._rounds.get(entry.priority)
        if round_ is None:
            round_ = self._rounds[entry.priority] = Round()
        round_.push(entry)
        self._size += 1
        return pushed_out

    def pop(self) -> E | None:
        if not self._size:
            return None
        round_ = self._rounds[min(self._rounds)]
        entry = round_.pop()
        self._shrink(entry.priority)
        return entry

    def remove(self, entry: E) -> bool:
        """Take a request out of its place. Whether it was there."""
        if entry not in self:
            return False
        self._rounds[entry.priority].remove(entry)
        self._shrink(entry.priority)
        return True

    def order(self) -> Iterator[E]:
        """All, in the order in which they would be served if nothing else came. O(n log keys)."""
        for priority in sorted(self._rounds):
            yield from self._rounds[priority].order()

    def position(self, entry: E) -> int:
        """How many are served before ``entry`` if nothing else comes. O(n log keys). Raises ValueError."""
        for position, each in enumerate(self.order()):
            if each is entry:
                return position
        raise ValueError("the entry does not wait here")

    def ahead_of(self, newcomer: E) -> int:
        """What the position of ``newcomer`` would be. O(keys)."""
        ahead = sum(len(round_) for priority, round_ in self._rounds.items() if priority < newcomer.priority)
        own = self._rounds.get(newcomer.priority)
        return ahead + (own.ahead_of(newcomer) if own else 0)

    def count_keys(self) -> Counter[str]:
        """How many requests of each key wait."""
        return sum((round_.count_keys() for round_ in self._rounds.values()), Counter())

    def _make_room(self, newcomer: E) -> E:
        if not self._rounds:
            raise QueueFull
        least = max(self._rounds)
        line = self._rounds[least].longest()
        leaves_enough = self._rounds[least].share_with(newcomer) <= (len(line.entries) - 1) / line.last.weight
        if newcomer.priority > least or (newcomer.priority == least and not leaves_enough):
            raise QueueFull
        loser = line.last
        self.remove(loser)
        return loser

    def _shrink(self, priority: int) -> None:
        """After one has left. A class where nobody waits forgets all: what comes next begins a new round."""
        self._size -= 1
        if not self._rounds[priority]:
            del self._rounds[priority]
