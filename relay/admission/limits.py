"""What a client's key may use: requests and tokens a minute, and requests at once.

The minutes are moving windows of the library ``limits``; ``relay/admission/windows.py`` keeps them.
"""

import math
import time
from collections.abc import Callable, Iterable
from typing import Final

from config.admission import KeyLimits
from config.settings import ClientKey
from relay.admission.windows import Clock, KeyLimit, KnownWindowRateLimiter, SlicedWindows
from relay.headers import Header
from utils.errors import TooManyRequests

BYTES_PER_TOKEN: Final = 4
"""As OpenAI rates English text. Too many for a body's JSON, too few for some languages; ``settle`` puts it right."""
TOKENS_PER_MEDIUM: Final = 1000
"""For an image or sound within the body, whose size says little about its tokens."""
INLINE: Final = b";base64,"
SMALL: Final = 4096
"""A body of at most so many bytes is not searched for media."""


def estimate_tokens(body: bytes, new_tokens: int = 0) -> int:
    """What a request will probably cost: its text, and the most that it lets the model say (0: it does not say)."""
    text, media = len(body), 0
    if text > SMALL:
        start = body.find(INLINE)
        while start >= 0:
            end = body.find(b'"', start)
            end = len(body) if end < 0 else end
            text, media = text - (end - start), media + 1
            start = body.find(INLINE, end)
    return max(1, text // BYTES_PER_TOKEN) + media * TOKENS_PER_MEDIUM + max(0, new_tokens)


SOON: Final = tuple(b"%ds" % seconds for seconds in range(60))


def duration(seconds: float) -> bytes:
    """As OpenAI writes it: ``1s``, ``6m0s``. Rounded up, so that whoever waits as long has waited long enough."""
    whole = math.ceil(seconds) if seconds > 0 else 0
    return SOON[whole] if whole < 60 else b"%dm%ds" % divmod(whole, 60)


def headers_of(lines: bytes) -> list[Header]:
    """What stands in lines that we wrote."""
    return [(name, value) for name, _, value in (line.partition(b": ") for line in lines.split(b"\r\n") if line)]


class Rate:
    """One limit of one key: so many ``units`` (requests or tokens) a minute."""

    __slots__ = ("_clock", "_limiter", "_lines", "_window", "item", "units")

    def __init__(self, key: str, units: str, amount: int, windows: SlicedWindows, clock: Clock) -> None:
        self.item = KeyLimit(amount, f"{units}/{key}")
        self.units = units
        self._limiter = KnownWindowRateLimiter(windows, self.item, clock)
        self._window = self._limiter.window
        self._clock = clock
        # OpenAI's three (https://platform.openai.com/docs/guides/rate-limits, "Rate limits in headers").
        self._lines = b"".join(
            b"x-ratelimit-%b-%b: %b\r\n" % (what, units.encode(), value)
            for what, value in ((b"limit", b"%d" % amount), (b"remaining", b"%d"), (b"reset", b"%b"))
        )

    def hit(self, cost: int) -> bool:
        return self._limiter.hit(self.item, cost=cost)

    def last_slice(self) -> int:
        """In which the last hit was counted, for ``give_back``."""
        return self._window.slices[-1][0]

    def add(self, cost: int) -> None:
        """What has been used already, whether there is room for it or not."""
        self._window.forget(self._clock())
        self._window.add(cost)

    def give_back(self, index: int, cost: int) -> None:
        self._window.give_back(index, cost)

    def seconds_until(self, used: int) -> float:
        """Until at most ``used`` units of the minute are used."""
        return max(0.0, self._window.time_of_room(used) - self._clock())

    def lines(self) -> bytes:
        """How it stands now, as headers are written; ``reset`` is when all is free again."""
        window, now = self._window, self._clock()
        window.forget(now)
        left = self.item.amount - window.total
        return self._lines % (left if left > 0 else 0, duration(window.time_when_free() - now))


class Grant:
    """Leave for one request. This one is of a key without limits, and counts nothing."""

    __slots__ = ()

    def lines(self) -> bytes:
        """For the answer's head: what is left of the key's limits now."""
        return b""

    def settle(self, tokens: int) -> None:
        """What the request really used, by its ``usage``; 0 for one that no worker answered. The last word counts."""

    def release(self) -> None:
        """The request has ended. To be called on every way out; again does no harm."""


class LimitedGrant(Grant):
    """Leave for one request of a key with limits."""

    __slots__ = ("_is_released", "_quota", "_slice", "_tokens")

    def __init__(self, quota: "Quota", tokens: int) -> None:
        self._quota = quota
        self._tokens = tokens  # counted for it until now
        self._slice = quota.tokens.last_slice() if quota.tokens else 0
        self._is_released = False

    def lines(self) -> bytes:
        return self._quota.lines()

    def settle(self, tokens: int) -> None:
        rate, more = self._quota.tokens, tokens - self._tokens
        if rate is None or not more:
            return
        if more > 0:
            rate.add(more)
        else:
            rate.give_back(self._slice, -more)
        self._tokens = tokens

    def release(self) -> None:
        if not self._is_released:
            self._is_released = True
            self._quota.running -= 1


class Quota:
    """The limits of one key, and what it has used of them."""

    __slots__ = ("_concurrency", "_key", "requests", "running", "tokens")

    def __init__(self, key: str, limits: KeyLimits, clock: Clock) -> None:
        windows = SlicedWindows(clock)
        self._key = key
        self._concurrency = limits.concurrency
        self.running = 0
        per_minute = limits.requests_per_minute
        self.requests = Rate(key, "requests", per_minute, windows, clock) if per_minute else None
        per_minute = limits.tokens_per_minute
        self.tokens = Rate(key, "tokens", per_minute, windows, clock) if per_minute else None

    def admit(self, body: bytes, new_tokens: Callable[[], int]) -> LimitedGrant:
        """Raises TooManyRequests. What is refused is not counted: who tries again must not lock himself out."""
        if self._concurrency is not None and self.running >= self._concurrency:
            raise self._too_many_at_once(self._concurrency)
        if self.requests is not None and not self.requests.hit(1):
            raise self._too_many(self.requests, 1)
        tokens = 0
        if self.tokens is not None:
            tokens = estimate_tokens(body, new_tokens())
            if not self.tokens.hit(tokens):
                if self.requests is not None:
                    self.requests.give_back(self.requests.last_slice(), 1)
                raise self._too_many(self.tokens, tokens)
        self.running += 1
        return LimitedGrant(self, tokens)

    def lines(self) -> bytes:
        lines = self.requests.lines() if self.requests is not None else b""
        return lines + self.tokens.lines() if self.tokens is not None else lines

    def _too_many(self, rate: Rate, cost: int) -> TooManyRequests:
        allowed = rate.item.amount
        if cost > allowed:
            return self._refusal(
                f"this request is rated at {cost} tokens, and the key {self._key!r} may use {allowed} a minute: "
                "send a shorter prompt or a smaller max_tokens", None
            )  # fmt: skip
        seconds = max(1, math.ceil(rate.seconds_until(allowed - cost)))
        rated = f" (this request is rated at {cost})" if rate is self.tokens else ""
        return self._refusal(
            f"the key {self._key!r} may use {allowed} {rate.units} a minute{rated}: try again in {seconds} s", seconds
        )

    def _too_many_at_once(self, allowed: int) -> TooManyRequests:
        return self._refusal(
            f"the key {self._key!r} may have {allowed} requests running or waiting at once: wait until one has ended", 1
        )

    def _refusal(self, message: str, retry_after_s: int | None) -> TooManyRequests:
        headers = tuple(headers_of(self.lines()))
        return TooManyRequests(message, code="rate_limit_exceeded", retry_after_s=retry_after_s, headers=headers)


UNLIMITED: Final = Grant()


class Limits:
    """The limits of all keys. ``clock`` gives seconds."""

    def __init__(self, keys: Iterable[ClientKey], clock: Clock = time.monotonic) -> None:
        self._quotas = {
            key.name: Quota(key.name, key.limits, clock) for key in keys if key.limits and key.limits != KeyLimits()
        }

    def admit(self, key: str, body: bytes, new_tokens: Callable[[], int] = int) -> Grant:
        """Leave for a request of the key named ``key``. Raises TooManyRequests.

        ``new_tokens``: the most that the request lets the model say, all answers together; 0 where it does not say.
        It is asked only if it counts.
        """
        quota = self._quotas.get(key)
        return UNLIMITED if quota is None else quota.admit(body, new_tokens)
