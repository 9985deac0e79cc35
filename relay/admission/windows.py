"""Moving windows for the library ``limits``, kept in memory, without its threads.

Its own MemoryStorage starts a timer thread at most hits, which costs 400 us each (measured with hits 12 ms apart), and
keeps an object for every unit, so that 500 tokens are 500 list entries. Here a window is a short list of time slices.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MovingWindowSupport, Storage
from limits.strategies import MovingWindowRateLimiter

SLICES: Final = 240
"""Of a window: what came in the same slice leaves together, at most 1/240 of the window (0.25 s) early."""

Clock = Callable[[], float]


class KeyLimit(RateLimitItemPerMinute):
    """So much a minute. The library puts its name together at every hit; this one has it ready."""

    __slots__ = ["name"]

    def __init__(self, amount: int, name: str) -> None:
        super().__init__(amount)
        self.name = name

    def key_for(self, *identifiers: bytes | str | float) -> str:
        return self.name


class Window:
    """What one limit has let through within the last ``SLICES`` slices of ``slice_s`` seconds. Times in seconds."""

    __slots__ = ("_newest", "index", "slice_s", "slices", "total")

    def __init__(self, length_s: float) -> None:
        self.slice_s = length_s / SLICES
        self.slices: deque[list[int]] = deque()  # [index, amount], oldest first
        self._newest = [-1, 0]  # slice
        self.index = 0  # of the slice of the last look
        self.total = 0

    def hit(self, now: float, amount: int, limit: int) -> bool:
        """Whether so much more is within the limit, and counted."""
        index = int(now / self.slice_s)
        if index != self.index:
            self.forget(now)
        total = self.total + amount
        if total > limit:
            return False
        if self._newest[0] == index:
            self.total = total
            self._newest[1] += amount
        else:
            self.add(amount)
        return True

    def forget(self, now: float) -> None:
        """What has left the window by now counts no more."""
        index = int(now / self.slice_s)
        if index != self.index:  # else nothing has left it since the last look
            self.index, gone, slices = index, index - SLICES, self.slices
            while slices and slices[0][0] <= gone:
                self.total -= slices.popleft()[1]

    def add(self, amount: int) -> None:
        """At the time of the last ``forget``."""
        self.total += amount
        if self._newest[0] == self.index:
            self._newest[1] += amount
        else:
            self._newest = [self.index, amount]
            self.slices.append(self._newest)

    def give_back(self, index: int, amount: int) -> None:
        """Of what was added in the slice ``index``; nothing where that has left the window."""
        for each in reversed(self.slices):
            if each[0] == index:
                amount = min(amount, each[1])
                each[1] -= amount
                self.total -= amount
            if each[0] <= index:
                return

    def time_when_free(self) -> float:
        """When nothing of what is here now is left; 0 where that is so already."""
        for index, amount in reversed(self.slices):
            if amount:
                return (index + SLICES) * self.slice_s
        return 0.0

    def time_of_room(self, room: int) -> float:
        """When at most ``room`` of what is here now is left; 0 where that is so already."""
        left, index = self.total, None
        for each, amount in self.slices:
            if left <= room:
                break
            left, index = left - amount, each
        return 0.0 if index is None else (index + SLICES) * self.slice_s


class KnownWindowRateLimiter(MovingWindowRateLimiter):
    """The library's strategy for one limit whose window is at hand: without the layers by which it is found, which cost
    three times as much as the hit itself.
    """

    def __init__(self, storage: "SlicedWindows", item: KeyLimit, clock: Clock) -> None:
        super().__init__(storage)
        self.window = storage.window(item.name, item.get_expiry())
        self._clock = clock

    def hit(self, item: RateLimitItem, *identifiers: str, cost: int = 1) -> bool:
        return self.window.hit(self._clock(), cost, item.amount)


class SlicedWindows(Storage, MovingWindowSupport):
    """All windows by the names of their limits. Times are values of ``clock``, in seconds.

    Not for several threads. A window is kept for ever: the names are those of the client keys in config.yaml.
    """

    STORAGE_SCHEME = None

    def __init__(self, clock: Clock = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._windows: dict[str, Window] = {}

    # -- what MovingWindowRateLimiter needs ------------------------------------------------------------------------

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        now = self._clock()
        window = self._window(key, expiry, now)
        if window.total + amount > limit:
            return False
        window.add(amount)
        return True

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """The time of the oldest hit, and the sum of all."""
        now = self._clock()
        window = self._window(key, expiry, now)
        return (window.slices[0][0] * window.slice_s if window.slices else now), window.total

    # -- what the limits of keys need beside it --------------------------------------------------------------------

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Adds what has been used already, whether there is room for it or not. Returns the sum."""
        now = self._clock()
        window = self._window(key, expiry, now)
        window.add(amount)
        return window.total

    def window(self, key: str, expiry: int) -> Window:
        """The window of a limit, to be looked at without its name."""
        return self._window(key, expiry, self._clock())

    def standing(self, key: str) -> tuple[int, float]:
        """What is used now, and the seconds until all is free again."""
        window = self._windows.get(key)
        if window is None:
            return 0, 0.0
        now = self._clock()
        window.forget(now)
        return window.total, max(0.0, window.time_when_free() - now)

    # -- the rest of the library's interface -----------------------------------------------------------------------

    @property
    def base_exceptions(self) -> tuple[type[Exception], ...]:
        return ()

    def get(self, key: str) -> int:
        return self.standing(key)[0]

    def get_expiry(self, key: str) -> float:
        """When all is free again."""
        return self._clock() + self.standing(key)[1]

    def check(self) -> bool:
        return True

    def reset(self) -> int:
        count = len(self._windows)
        self._windows.clear()
        return count

    def clear(self, key: str) -> None:
        self._windows.pop(key, None)

    def _window(self, key: str, expiry: int, now: float) -> Window:
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = Window(expiry)
        window.forget(now)
        return window
