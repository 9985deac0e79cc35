"""What a key may use: the limits, their headers, and the words for those who want more."""

import threading
from collections import deque
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits import RateLimitItemPerMinute
from limits.strategies import MovingWindowRateLimiter

from config.settings import ClientKey
from relay.admission.limits import TOKENS_PER_MEDIUM, UNLIMITED, Limits, duration, estimate_tokens, headers_of
from relay.admission.windows import SLICES, KeyLimit, KnownWindowRateLimiter, SlicedWindows
from relay.request import RequestFields
from tests.doubles import PATIENT
from utils.errors import TooManyRequests

BODY = b"x" * 40
"""Ten tokens."""
HASH = "sha256:" + "0" * 64


class Clock:
    """Seconds that pass when a test says so; it begins where a real one might."""

    def __init__(self) -> None:
        self.now = 1234.5

    def __call__(self) -> float:
        return self.now


def fields_of(new_tokens: int) -> RequestFields:
    return RequestFields(max_tokens=msgspec.Raw(b"%d" % new_tokens))


class Desk:
    """The limits of one key, ``alice``."""

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        key = ClientKey.model_validate({"name": "alice", "hash": HASH, "limits": limits})
        self.limits = Limits([key], self.clock)

    def admit(self, body: bytes = BODY, new_tokens: int = 0) -> Any:
        return self.limits.admit("alice", body, fields_of(new_tokens))

    def lines(self) -> dict[bytes, bytes]:
        """How the limits stand now."""
        return dict(headers_of(self.limits._quotas["alice"].lines()))

    def refusal(self, body: bytes = BODY, new_tokens: int = 0) -> TooManyRequests:
        with pytest.raises(TooManyRequests) as caught:
            self.admit(body, new_tokens)
        return caught.value


def of(error: TooManyRequests, name: str) -> str | None:
    value = dict(error.headers).get(name.encode())
    return None if value is None else value.decode()


# -- requests a minute ---------------------------------------------------------------------------------------------


def test_so_many_requests_a_minute_and_no_more() -> None:
    desk = Desk(requests_per_minute=3)
    for _ in range(3):
        desk.admit()
        desk.clock.now += 10
    error = desk.refusal()
    assert (error.status, error.type, error.code) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert of(error, "retry-after") == "30"
    assert "'alice'" in error.message
    assert "3 requests a minute: try again in 30 s" in error.message


def test_who_comes_again_when_told_is_admitted() -> None:
    desk = Desk(requests_per_minute=2)
    for _ in range(20):
        desk.admit()
        desk.admit()
        desk.clock.now += int(of(desk.refusal(), "retry-after") or 0)


def test_those_who_are_refused_are_not_counted() -> None:
    desk = Desk(requests_per_minute=1)
    desk.admit()
    for _ in range(100):
        desk.refusal()
    desk.clock.now += 60
    desk.admit()


def test_a_request_that_tokens_refuse_is_not_counted_either() -> None:
    desk = Desk(requests_per_minute=2, tokens_per_minute=15)
    desk.admit()
    for _ in range(5):
        error = desk.refusal()
        assert "15 tokens a minute" in error.message
        assert of(error, "x-ratelimit-remaining-requests") == "1"


# -- tokens a minute -----------------------------------------------------------------------------------------------


def test_tokens_are_counted_by_estimate() -> None:
    desk = Desk(tokens_per_minute=100)
    desk.admit(new_tokens=50)
    desk.clock.now += 20
    desk.admit(new_tokens=20)
    error = desk.refusal(new_tokens=10)
    assert of(error, "retry-after") == "40"
    assert "100 tokens a minute (this request is rated at 20): try again in 40 s" in error.message


def test_what_was_not_used_is_free_again() -> None:
    desk = Desk(tokens_per_minute=100)
    grant = desk.admit(new_tokens=90)
    desk.clock.now += 5
    assert of(desk.refusal(), "x-ratelimit-remaining-tokens") == "0"
    grant.settle(12)
    assert desk.lines()[b"x-ratelimit-remaining-tokens"] == b"88"
    desk.admit(new_tokens=78)
    desk.refusal()


def test_what_was_used_beyond_the_estimate_counts() -> None:
    desk = Desk(tokens_per_minute=100)
    grant = desk.admit()
    grant.settle(500)
    assert desk.lines()[b"x-ratelimit-remaining-tokens"] == b"0"
    desk.refusal()
    desk.clock.now += 60
    desk.admit()


def test_what_is_settled_later_counts_for_a_minute_from_then() -> None:
    desk = Desk(tokens_per_minute=100)
    grant = desk.admit()
    desk.clock.now += 30
    grant.settle(80)
    desk.clock.now += 40
    assert desk.lines()[b"x-ratelimit-remaining-tokens"] == b"30"


def test_the_last_word_on_what_was_used_counts() -> None:
    desk = Desk(tokens_per_minute=100)
    grant = desk.admit()
    for used, left in ((30, b"70"), (30, b"70"), (0, b"100"), (20, b"80")):
        grant.settle(used)
        assert desk.lines()[b"x-ratelimit-remaining-tokens"] == left


def test_what_is_settled_after_its_minute_gives_nothing_back() -> None:
    desk = Desk(tokens_per_minute=100)
    grant = desk.admit(new_tokens=90)
    desk.clock.now += 61
    desk.admit(new_tokens=40)
    grant.settle(0)
    assert desk.lines()[b"x-ratelimit-remaining-tokens"] == b"50"


def test_what_was_given_back_does_not_leave_the_window_a_second_time() -> None:
    desk = Desk(tokens_per_minute=100)
    desk.admit(new_tokens=80).settle(0)
    desk.clock.now += 30
    desk.admit(new_tokens=80)
    desk.clock.now += 31  # the first minute is over, that of the second is not
    assert of(desk.refusal(new_tokens=5), "x-ratelimit-remaining-tokens") == "10"


def test_a_request_that_will_never_fit_is_told_so_and_not_to_try_again() -> None:
    error = Desk(tokens_per_minute=100).refusal(new_tokens=1000)
    assert (error.status, of(error, "retry-after"), of(error, "x-should-retry")) == (429, None, "false")
    assert "rated at 1010 tokens" in error.message
    assert "smaller max_tokens" in error.message


@pytest.mark.parametrize(
    ("body", "new_tokens", "expected"),
    [
        (b"", 0, 1), (b"x" * 400, 0, 100), (b"x" * 400, 50, 150), (b"x" * 400, -50, 100),
        (b'{"url":"data:image/png;base64,' + b"A" * 1_000_000 + b'"}', 0, 8 + TOKENS_PER_MEDIUM),
        (b'{"url":"data:image/png;base64,' + b"A" * 1_000_000, 0, 5 + TOKENS_PER_MEDIUM),
        ((b'"data:image/png;base64,' + b"A" * 5000 + b'"') * 3, 0, 12 + 3 * TOKENS_PER_MEDIUM),
        (b"x" * 1_000_000, 0, 250_000),
    ],
)  # fmt: skip
def test_an_estimate_is_of_text_and_not_of_pictures_bytes(body: bytes, new_tokens: int, expected: int) -> None:
    assert estimate_tokens(body, new_tokens) == pytest.approx(expected, abs=3)


@given(st.binary(max_size=200), st.integers(-10, 10))
def test_every_request_costs_something(body: bytes, new_tokens: int) -> None:
    assert estimate_tokens(body * 100, new_tokens) >= 1


# -- requests at once ----------------------------------------------------------------------------------------------


def test_so_many_at_once() -> None:
    desk = Desk(concurrency=2)
    first, _ = desk.admit(), desk.admit()
    error = desk.refusal()
    assert of(error, "retry-after") == "1"
    assert "2 requests running or waiting at once" in error.message
    first.release()
    first.release()  # again: no second place is free for it
    desk.admit()
    desk.refusal()


def test_who_is_refused_for_another_reason_takes_no_place() -> None:
    desk = Desk(concurrency=1, requests_per_minute=1)
    desk.admit().release()
    desk.refusal()
    desk.clock.now += 60
    desk.admit()


# -- headers -------------------------------------------------------------------------------------------------------


def test_the_headers_are_those_of_openai() -> None:
    desk = Desk(requests_per_minute=60, tokens_per_minute=1000)
    assert dict(headers_of(desk.admit(new_tokens=90).lines)) == {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"59",
        b"x-ratelimit-reset-requests": b"1m0s",
        b"x-ratelimit-limit-tokens": b"1000",
        b"x-ratelimit-remaining-tokens": b"900",
        b"x-ratelimit-reset-tokens": b"1m0s",
    }


def test_a_limit_that_is_not_set_has_no_headers() -> None:
    assert {name for name, _ in headers_of(Desk(tokens_per_minute=9999).admit().lines)} == {
        b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"
    }  # fmt: skip
    assert Desk(concurrency=1).admit().lines == b""


def test_what_is_refused_has_the_headers_too() -> None:
    desk = Desk(requests_per_minute=1)
    desk.admit()
    desk.clock.now += 18
    assert of(desk.refusal(), "x-ratelimit-reset-requests") == "42s"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, b"0s"), (-1, b"0s"), (0.001, b"1s"), (1, b"1s"), (59.5, b"1m0s"), (360, b"6m0s")]
)
def test_durations_are_written_as_openai_does(seconds: float, text: bytes) -> None:
    assert duration(seconds) == text


# -- keys without limits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [None, {}])
def test_a_key_without_limits_has_all_it_wants(limits: dict[str, Any] | None) -> None:
    keys = [ClientKey.model_validate({"name": "bob", "hash": HASH, "limits": limits})]
    for name in ("bob", "", "unknown"):
        grant = Limits(keys).admit(name, BODY, fields_of(10**9))
        assert grant is UNLIMITED
        assert grant.lines == b""
        grant.settle(10**9)
        grant.release()


def test_keys_do_not_share_their_limits() -> None:
    keys = [ClientKey.model_validate({"name": name, "hash": HASH, "limits": {"requests_per_minute": 1}})
            for name in ("alice", "bob")]  # fmt: skip
    limits = Limits(keys)
    limits.admit("alice", BODY)
    limits.admit("bob", BODY)
    with pytest.raises(TooManyRequests, match="'bob'"):
        limits.admit("bob", BODY)


# -- the windows, as the library's storage -------------------------------------------------------------------------


@PATIENT
@given(
    st.integers(1, 20), st.lists(st.tuples(st.floats(0, 40), st.integers(1, 8)), max_size=60), st.floats(0, 1e6),
    st.booleans(),
)  # fmt: skip
def test_a_window_lets_through_what_a_list_of_all_hits_would(
    limit: int, hits: list[tuple[float, int]], start: float, is_known: bool
) -> None:
    """Against the plain way, which keeps every hit with its time, up to the length of a slice."""
    clock = Clock()
    clock.now = start
    windows, item = SlicedWindows(clock), KeyLimit(limit, "requests/alice")
    limiter = KnownWindowRateLimiter(windows, item, clock) if is_known else MovingWindowRateLimiter(windows)
    taken: deque[tuple[float, int]] = deque()
    for pause, cost in hits:
        clock.now += pause
        is_taken = limiter.hit(item, cost=cost)
        surely = sum(amount for at, amount in taken if at > clock.now - 60 + 60 / SLICES + 1e-6)
        perhaps = sum(amount for at, amount in taken if at > clock.now - 60 - 1e-6)
        assert not is_taken or surely + cost <= limit
        assert is_taken or perhaps + cost > limit
        if is_taken:
            taken.append((clock.now, cost))
        assert surely - cost <= limiter.get_window_stats(item).remaining * -1 + limit <= perhaps + cost


def test_a_window_takes_bounded_room() -> None:
    clock = Clock()
    windows = SlicedWindows(clock)
    limiter, item = MovingWindowRateLimiter(windows), KeyLimit(10**9, "tokens/alice")
    for _ in range(100_000):
        clock.now += 0.002
        limiter.hit(item, cost=7)
    assert len(windows._windows["tokens/alice"].slices) <= SLICES + 1


def test_no_thread_is_started() -> None:
    desk = Desk(requests_per_minute=10, tokens_per_minute=10**6)
    before = threading.active_count()
    for _ in range(5):
        desk.admit()
    assert threading.active_count() == before


def test_the_library_can_use_the_storage_with_its_own_limits_too() -> None:
    clock = Clock()
    windows = SlicedWindows(clock)
    limiter, item = MovingWindowRateLimiter(windows), RateLimitItemPerMinute(2)
    assert limiter.hit(item, "bob")
    clock.now += 15
    assert limiter.hit(item, "bob")
    assert not limiter.hit(item, "bob")
    assert not limiter.test(item, "bob")
    assert limiter.test(item, "carol")
    name = item.key_for("bob")
    assert windows.check()
    assert windows.get(name) == 2
    assert windows.get_expiry(name) == pytest.approx(clock.now + 60, abs=0.25)
    assert limiter.get_window_stats(item, "bob").reset_time == pytest.approx(clock.now + 45, abs=0.25)
    assert windows.incr(name, 60, 5) == 7
    limiter.clear(item, "bob")
    assert windows.get(name) == 0
    assert limiter.hit(item, "bob")
    assert windows.reset() == 1 + 1
    assert windows.get(name) == 0


def test_our_names_are_not_put_together_at_every_hit() -> None:
    assert KeyLimit(5, "requests/alice").key_for("ignored") == "requests/alice"
