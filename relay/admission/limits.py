"""What a client's key may use: requests and tokens a minute, and requests at once.

The minutes are moving windows of the library ``limits``; ``relay/admission/windows.py`` keeps them.
"""

import math
import time
from collections.abc import Iterable
from typing import Final

from config.admission import KeyLimits
from config.settings import ClientKey
from relay.admission.windows import Clock, KeyLimit, KnownWindowRateLimiter, SlicedWindows
from relay.headers import Header
from relay.request import NO_FIELDS, RequestFields, new_tokens_of
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


WINDOW_S: Final = 60
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

    __slots__ = ("amount", "lines_format", "units", "window")

    def __init__(self, key: str, units: str, amount: int, windows: SlicedWindows, clock: Clock) -> None:
        self.amount = amount
        self.units = units
        self.window = KnownWindowRateLimiter(windows, KeyLimit(amount, f"{units}/{key}"), clock).window
        # OpenAI's three (https://platform.openai.com/docs/guides/rate-limits, "Rate limits in headers").
        self.lines_format = b"".join(
            b"x-ratelimit-%b-%b: %b\r\n" % (what, units.encode(), value)
            for what, value in ((b"limit", b"%d" % amount), (b"remaining", b"%d"), (b"reset", b"%b"))
        )

    def seconds_until(self, now: float, used: int) -> float:
        """Until at most ``used`` units of the minute are used."""
        return max(0.0, self.window.time_of_room(used) - now)

    def lines(self, now: float) -> bytes:
        """How it stands, as headers are written; ``reset`` is when all is free again."""
        window = self.window
        window.forget(now)
        return self.lines_format % (max(0, self.amount - window.total), duration(window.time_when_free() - now))


class Grant:
    """Leave for one request. This one is of a key without limits, and counts nothing."""

    __slots__ = ()

    lines = b""
    """For the answer's head: what was left of the key's limits when the request came."""
    prompt_tokens = 0
    """The request's text, as the client sent it, by estimate: one that goes on elsewhere gets a longer one."""

    def settle(self, tokens: int) -> None:
        """What the request really used, by its ``usage``; 0 for one that no worker answered. The last word counts."""

    def release(self) -> None:
        """The request has ended. To be called on every way out; again does no harm."""


class LimitedGrant(Grant):
    """Leave for one request of a key with limits."""

    __slots__ = ("_is_released", "_quota", "_slice", "_tokens", "lines", "prompt_tokens")

    def __init__(self, quota: "Quota", prompt_tokens: int, tokens: int, slice_of_tokens: int, lines: bytes) -> None:
        self._quota = quota
        self.prompt_tokens = prompt_tokens
        self._tokens = tokens  # counted for it until now
        self._slice = slice_of_tokens  # in which they were
        self._is_released = False
        self.lines = lines

    def settle(self, tokens: int) -> None:
        more = tokens - self._tokens
        if more:
            self._tokens = tokens
            self._quota.settle(self._slice, more)

    def release(self) -> None:
        if not self._is_released:
            self._is_released = True
            self._quota.running -= 1


class Quota:
    """The limits of one key, and what it has used of them."""

    __slots__ = ("_clock", "_concurrency", "_key", "_lines_format", "requests", "running", "tokens")

    def __init__(self, key: str, limits: KeyLimits, clock: Clock) -> None:
        windows = SlicedWindows(clock)
        self._clock = clock
        self._key = key
        self._concurrency = limits.concurrency
        self.running = 0
        per_minute = limits.requests_per_minute
        self.requests = Rate(key, "requests", per_minute, windows, clock) if per_minute else None
        per_minute = limits.tokens_per_minute
        self.tokens = Rate(key, "tokens", per_minute, windows, clock) if per_minute else None
        # What has just been hit is free again when a whole window is over.
        self._lines_format = b"".join(
            rate.lines_format.replace(b": %b", b": " + duration(WINDOW_S)) for rate in self._rates()
        )

    def _rates(self) -> list[Rate]:
        return [rate for rate in (self.requests, self.tokens) if rate is not None]

    def admit(self, body: bytes, fields: RequestFields) -> LimitedGrant:
        """Raises TooManyRequests. What is refused is not counted: who tries again must not lock himself out."""
        if self._concurrency is not None and self.running >= self._concurrency:
            raise self._too_many_at_once(self._concurrency)
        now, prompt, tokens, index = self._clock(), 0, 0, 0
        left: tuple[int, ...] = ()
        requests = self.requests
        if requests is not None:
            if not requests.window.hit(now, 1, requests.amount):
                raise self._too_many(requests, 1)
            left = (requests.amount - requests.window.total,)
        rate = self.tokens
        if rate is not None:
            prompt = estimate_tokens(body)
            tokens = prompt + max(0, new_tokens_of(fields))
            if not rate.window.hit(now, tokens, rate.amount):
                if requests is not None:
                    requests.window.give_back(requests.window.index, 1)
                raise self._too_many(rate, tokens)
            index = rate.window.index
            left = (*left, rate.amount - rate.window.total)
        self.running += 1
        return LimitedGrant(self, prompt, tokens, index, self._lines_format % left)

    def settle(self, index: int, more: int) -> None:
        """So many tokens more, or less, than were counted in the slice ``index``; whether there is room or not."""
        if self.tokens is None:
            return
        window = self.tokens.window
        if more > 0:
            window.forget(self._clock())
            window.add(more)
        else:
            window.give_back(index, -more)

    def lines(self) -> bytes:
        """How its limits stand now, as headers are written."""
        now = self._clock()
        return b"".join(rate.lines(now) for rate in self._rates())

    def _too_many(self, rate: Rate, cost: int) -> TooManyRequests:
        allowed = rate.amount
        if cost > allowed:
            return self._refusal(
                f"this request is rated at {cost} tokens, and the key {self._key!r} may use {allowed} a minute: "
                "send a shorter prompt or a smaller max_tokens", None
            )  # fmt: skip
        seconds = max(1, math.ceil(rate.seconds_until(self._clock(), allowed - cost)))
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

    def admit(self, key: str, body: bytes, fields: RequestFields = NO_FIELDS) -> Grant:
        """Leave for a request of the key named ``key``. Raises TooManyRequests.

        ``fields`` say how much the request lets the model say.
        """
        quota = self._quotas.get(key)
        return UNLIMITED if quota is None else quota.admit(body, fields)
