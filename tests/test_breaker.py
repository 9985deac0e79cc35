"""Replicas that fail again and again are left alone for a while."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from monitor.registry import Replica
from relay.routing.breaker import MAX_COOLDOWN_FACTOR, Breakers
from tests.doubles import PATIENT

REPLICAS = tuple(Replica(worker_id, "127.0.0.1", 8000) for worker_id in "ab")


def new_breakers() -> Breakers:
    return Breakers(threshold=3, cooldown_s=10)


def fail(breakers: Breakers, times: int = 3, now: float = 0) -> list[bool]:
    return [breakers.failed("a", now) for _ in range(times)]


def asked(breakers: Breakers, now: float) -> list[str]:
    return [replica.worker_id for replica in breakers.allowed(REPLICAS, now)]


def test_the_third_failure_in_a_row_opens() -> None:
    breakers = new_breakers()
    assert fail(breakers) == [False, False, True]
    assert asked(breakers, 9.9) == ["b"]
    assert breakers.view("a", 4) == {"state": "open", "failures_in_a_row": 3, "tried_again_in_s": 6}


def test_an_answer_between_failures_keeps_it_closed() -> None:
    breakers = new_breakers()
    for _ in range(5):
        fail(breakers, 2)
        breakers.succeeded("a")
    assert asked(breakers, 0) == ["a", "b"]


def test_after_the_cooldown_one_request_may_try() -> None:
    breakers = new_breakers()
    fail(breakers)
    assert asked(breakers, 10) == ["a", "b"]
    assert breakers.view("a", 10)["state"] == "half_open"
    breakers.chosen("a")
    assert asked(breakers, 10) == ["b"]
    assert breakers.view("a", 10) == {"state": "half_open", "failures_in_a_row": 3, "tried_again_in_s": None}
    breakers.succeeded("a")
    assert asked(breakers, 10) == ["a", "b"]
    assert breakers.view("a", 10) == {"state": "closed", "failures_in_a_row": 0, "tried_again_in_s": None}


def test_a_try_that_fails_opens_it_for_twice_as_long() -> None:
    breakers = new_breakers()
    fail(breakers)
    breakers.chosen("a")
    assert fail(breakers, 1, now=10) == [True]
    assert asked(breakers, 29) == ["b"]
    assert asked(breakers, 30) == ["a", "b"]


def test_a_try_whose_client_went_away_leaves_room_for_the_next() -> None:
    breakers = new_breakers()
    fail(breakers)
    breakers.chosen("a")
    breakers.ended_unknown("a")
    assert asked(breakers, 10) == ["a", "b"]


def test_many_failures_at_once_count_as_one_opening() -> None:
    breakers = new_breakers()
    assert sum(fail(breakers, 50)) == 1
    assert asked(breakers, 10) == ["a", "b"]


def test_where_all_are_open_all_may_be_asked() -> None:
    breakers = new_breakers()
    for replica in REPLICAS:
        for _ in range(3):
            breakers.failed(replica.worker_id, 0)
    assert asked(breakers, 1) == ["a", "b"]


def test_another_process_starts_afresh() -> None:
    breakers = new_breakers()
    fail(breakers)
    breakers.forget("a")
    assert asked(breakers, 0) == ["a", "b"]


EVENTS = st.lists(st.tuples(st.sampled_from(["failed", "succeeded", "chosen", "ended_unknown"]), st.floats(0, 5)))


@PATIENT
@given(EVENTS)
def test_no_circuit_stays_open_for_ever(events: Sequence[tuple[str, float]]) -> None:
    breakers, now = new_breakers(), 0.0
    for event, passed_s in events:
        now += passed_s
        if event == "failed":
            breakers.failed("a", now)
        else:
            getattr(breakers, event)("a")
    breakers.ended_unknown("a")  # every request ends
    assert asked(breakers, now + 10 * MAX_COOLDOWN_FACTOR) == ["a", "b"]
