"""Who may go now, who waits and for how long, and what is said to those who cannot."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.admission import LEAST_URGENT, MOST_URGENT, NORMAL, AdmissionSettings
from relay.admission.admission import MAX_RETRY_S, RECENT, Admission, HasCapacity, Pace
from relay.admission.fair_queue import Entry
from relay.admission.waiting import priority_of, queue_notice, timeout_of
from utils.errors import ApiError, BadRequest, QueueTimeout, TooManyRequests
from utils.sse import SSEParser

MODEL = "m"


class FakeReplica:
    names = (MODEL,)

    def __init__(self, capacity: int | None) -> None:
        self.capacity = capacity


class Outcomes:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, float]] = []

    def queue_left(self, model: str, outcome: str, seconds: float) -> None:
        self.seen.append((model, outcome, seconds))

    @property
    def words(self) -> list[str]:
        return [outcome for _, outcome, _ in self.seen]


class Hall:
    """An admission with one model of ``replicas``."""

    def __init__(self, *replicas: int | None, **settings: Any) -> None:
        self.ready: Sequence[HasCapacity] = [FakeReplica(each) for each in replicas]
        self.outcomes = Outcomes()
        self.admission: Admission[Entry] = Admission(AdmissionSettings.model_validate(settings), self, self.outcomes)

    def replicas(self, _: str) -> Sequence[HasCapacity]:
        return self.ready

    def names(self, line: str) -> Sequence[str]:
        return [line]

    def enter(self, key: str = "a", now: float = 0.0, wait_s: float = 300.0, priority: int = NORMAL) -> Entry:
        entry = Entry(key, priority, 1.0, now, now + wait_s, request_id=f"req-{key}")
        self.pushed_out = self.admission.enter(MODEL, entry, now)
        return entry

    def refusal(self, **entry: Any) -> ApiError:
        with pytest.raises((TooManyRequests, QueueTimeout)) as caught:
            self.enter(**entry)
        error = caught.value
        assert isinstance(error, ApiError)
        return error


def retry_after(error: ApiError) -> int:
    return int(dict(error.headers)[b"retry-after"])


# -- how many run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said", "expected"),
    [
        ({}, 8, 8), ({}, None, None), ({}, 0, None), ({}, -1, None), ({"capacity": 4}, 8, 4),
        ({"capacity": 4}, None, 4), ({"capacity": 4, "models": {MODEL: {"capacity": 2}}}, 8, 2),
        ({"models": {"other": {"capacity": 2}}}, 8, 8), ({"capacity": 4, "models": {MODEL: {"max_queue": 1}}}, 8, 4),
    ],
)  # fmt: skip
def test_what_is_set_wins_over_what_the_worker_says(
    settings: dict[str, Any], said: int | None, expected: int | None
) -> None:
    assert Hall(**settings).admission.capacity(MODEL, FakeReplica(said)) == expected


@pytest.mark.parametrize(("replicas", "slots"), [((), 0), ((8, 4), 12), ((8, None), None), ((None,), None)])
def test_a_models_slots_are_those_of_its_ready_replicas(replicas: tuple[int | None, ...], slots: int | None) -> None:
    assert Hall(*replicas).admission.slots(MODEL) == slots


# -- who waits -----------------------------------------------------------------------------------------------------


def test_there_is_a_queue_as_long_as_somebody_waits() -> None:
    hall = Hall(1)
    assert not hall.admission.has_queue(MODEL)
    first, second = hall.enter(), hall.enter()
    assert list(hall.admission.queued_lines()) == [MODEL]
    assert hall.admission.next(MODEL, 2.0) is first
    assert hall.admission.has_queue(MODEL)
    assert hall.admission.next(MODEL, 3.0) is second
    assert not hall.admission.has_queue(MODEL)
    assert hall.admission.next(MODEL, 4.0) is None
    assert hall.outcomes.seen == [(MODEL, "served", 2.0), (MODEL, "served", 3.0)]


def test_the_line_that_was_served_longest_ago_has_its_turn_first() -> None:
    """Also before one that has just emptied and fills again: else who asks for one at a time would go first always."""
    hall, served = Hall(1), []
    for line in "aab":
        hall.admission.enter(line, Entry(line, NORMAL, 1.0, 0.0, 300.0), 0.0)
    assert hall.admission.in_turn("bca") == ["a", "b"]
    for _ in range(6):
        line = hall.admission.in_turn("ab")[0]
        hall.admission.next(line, 0.0)
        hall.admission.enter(line, Entry(line, NORMAL, 1.0, 0.0, 300.0), 0.0)
        served.append(line)
    assert served == list("ababab")


def test_models_do_not_wait_for_each_other() -> None:
    hall = Hall(1)
    hall.enter()
    assert not hall.admission.has_queue("other")
    assert hall.admission.next("other", 0.0) is None


def test_who_leaves_is_not_served() -> None:
    hall = Hall(1)
    entry = hall.enter()
    assert hall.admission.leave(MODEL, entry, 1.5)
    assert not hall.admission.has_queue(MODEL)
    assert not hall.admission.leave(MODEL, entry, 2.0)
    assert hall.outcomes.seen == [(MODEL, "gone", 1.5)]


def test_who_was_served_has_not_left() -> None:
    hall = Hall(1)
    entry = hall.enter()
    hall.admission.next(MODEL, 1.0)
    assert not hall.admission.leave(MODEL, entry, 1.0)
    assert hall.outcomes.words == ["served"]


def test_a_full_queue_is_a_429_that_says_when_to_come_again() -> None:
    hall = Hall(2, max_queue=3)
    for _ in range(3):
        hall.enter()
    hall.admission.landed(MODEL, 6.0)
    error = hall.refusal()
    assert (error.status, error.type, error.code) == (429, "rate_limit_error", "queue_full")
    assert retry_after(error) == 9  # three requests of 6 s, two at a time
    assert "try again in 9 s" in error.message
    assert hall.outcomes.words == ["refused"]


def test_where_no_queue_is_wanted_nobody_waits() -> None:
    hall = Hall(1, models={MODEL: {"max_queue": 0}})
    hall.admission.landed(MODEL, 10.0)
    error = hall.refusal()
    assert (error.code, retry_after(error)) == ("queue_full", 10)
    assert not hall.admission.has_queue(MODEL)


@pytest.mark.parametrize(("seconds", "expected"), [(None, 5), (0.001, 1), (10_000.0, MAX_RETRY_S)])
def test_nobody_is_sent_away_for_no_time_or_for_ever(seconds: float | None, expected: int) -> None:
    hall = Hall(1, max_queue=1)
    hall.enter()
    if seconds is not None:
        hall.admission.landed(MODEL, seconds)
    assert retry_after(hall.admission.full(MODEL)) == expected


def test_who_has_to_leave_for_a_more_urgent_one_is_told() -> None:
    hall = Hall(1, max_queue=1)
    low = hall.enter(now=0.0, priority=LEAST_URGENT)
    urgent = hall.enter(now=4.0, priority=MOST_URGENT)
    assert hall.pushed_out is low
    assert hall.outcomes.seen == [(MODEL, "pushed_out", 4.0)]
    assert hall.admission.next(MODEL, 4.0) is urgent


# -- deadlines -----------------------------------------------------------------------------------------------------


def test_who_has_waited_too_long_leaves_and_is_told() -> None:
    hall = Hall(1)
    patient, hasty = hall.enter(wait_s=60), hall.enter(wait_s=5)
    assert hall.admission.expired(4.9, 100) == []
    assert hall.admission.expired(5.0, 100) == [(MODEL, hasty)]
    assert hall.admission.expired(5.0, 100) == []
    assert hall.admission.expired(100.0, 100) == [(MODEL, patient)]
    assert not hall.admission.has_queue(MODEL)
    assert hall.outcomes.words == ["expired", "expired"]
    error = hall.admission.too_late(MODEL)
    assert (error.status, error.code, retry_after(error)) == (503, "queue_timeout", 5)
    assert "x-ichat-timeout-s" in error.message


def test_who_cannot_be_served_in_time_does_not_wait_for_nothing() -> None:
    hall = Hall(1)
    hall.admission.landed(MODEL, 10.0)
    hall.enter(wait_s=10)
    error = hall.refusal(wait_s=19.9)
    assert error.code == "queue_timeout"
    assert "about 20 s" in error.message
    hall.enter(wait_s=20)
    assert hall.admission.waiting(MODEL) == 2


def test_the_urgent_are_served_in_time_where_others_are_not() -> None:
    hall = Hall(1)
    hall.admission.landed(MODEL, 10.0)
    for _ in range(5):
        hall.enter()
    assert hall.refusal(wait_s=30).code == "queue_timeout"
    hall.enter(wait_s=30, priority=MOST_URGENT)


def test_while_nobody_knows_how_long_it_takes_everybody_may_wait() -> None:
    hall = Hall(1)
    for _ in range(100):
        hall.enter(wait_s=0.1)
    assert hall.admission.waiting(MODEL) == 100


def test_a_deadline_that_has_passed_is_none() -> None:
    hall = Hall(1)
    assert hall.refusal(wait_s=0).code == "queue_timeout"
    assert hall.outcomes.words == ["refused"]


# -- how long it takes ---------------------------------------------------------------------------------------------


def test_the_eta_is_that_of_the_slots_at_the_pace_measured() -> None:
    hall = Hall(2, 2)
    assert hall.admission.eta_s(MODEL, 0) is None
    hall.admission.landed(MODEL, 8.0)
    assert [hall.admission.eta_s(MODEL, position) for position in (0, 1, 7)] == [2.0, 4.0, 16.0]
    hall.ready = []
    assert hall.admission.eta_s(MODEL, 0) is None


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=RECENT))
def test_the_pace_of_the_first_requests_is_their_mean(seconds: list[float]) -> None:
    pace = Pace()
    for each in seconds:
        pace.add(each)
    assert pace.seconds == pytest.approx(sum(seconds) / len(seconds))


def test_the_pace_follows_a_change() -> None:
    pace = Pace()
    for seconds in [100.0] * 50 + [1.0] * RECENT * 5:
        pace.add(seconds)
    assert pace.seconds == pytest.approx(1.0, abs=1.0)


# -- what is shown -------------------------------------------------------------------------------------------------


def test_the_view_shows_who_waits_for_what_and_where() -> None:
    hall = Hall(2)
    hall.admission.landed(MODEL, 4.0)
    for key, now in (("a", 0.0), ("a", 1.0), ("b", 2.0)):
        hall.enter(key, now)
    view = hall.admission.view(now=10.0)[MODEL]
    rows = view.pop("queue")
    assert view == {"waiting": 3, "max_queue": 1000, "slots": 2, "mean_seconds": 4.0, "by_key": {"a": 2, "b": 1}}
    assert [(row["key"], row["position"], row["eta_s"], row["waited_s"]) for row in rows] == [
        ("a", 1, 2.0, 10.0), ("b", 2, 4.0, 8.0), ("a", 3, 6.0, 9.0),
    ]  # fmt: skip
    assert rows[0] | {"request_id": "req-a", "priority": NORMAL, "gives_up_in_s": 290.0} == rows[0]


def test_the_view_of_no_queue_is_empty() -> None:
    assert Hall(1).admission.view(0.0) == {}
    assert Hall(1).admission.standings(MODEL) == []


# -- what the client says and is told ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "cap", "expected"),
    [
        (None, NORMAL, 5), (None, MOST_URGENT, 5), (None, 8, 8), (b"high", MOST_URGENT, 2), (b" Low ", MOST_URGENT, 8),
        (b"0", MOST_URGENT, 0), (b"9", MOST_URGENT, 9), (b"high", NORMAL, 5), (b"0", 8, 8),
    ],
)  # fmt: skip
def test_a_priority_is_what_is_asked_for_and_no_more_than_the_key_may(
    asked: bytes | None, cap: int, expected: int
) -> None:
    headers = {} if asked is None else {b"x-ichat-priority": asked}
    assert priority_of(headers, cap) == expected


@pytest.mark.parametrize("asked", [b"", b"urgent", b"10", b"-1", b"1.5", b"\xb2", b"\xff" * 10, b"1" * 1000])
def test_a_wrong_priority_is_told_what_there_is(asked: bytes) -> None:
    with pytest.raises(BadRequest, match=r"x-ichat-priority.*high, normal, low, or a number from 0.*to 9"):
        priority_of({b"x-ichat-priority": asked}, MOST_URGENT)


@pytest.mark.parametrize(("asked", "expected"), [(None, 300.0), (b"5", 5.0), (b"0.25", 0.25), (b"86400", 86400.0)])
def test_a_timeout_is_what_is_asked_for(asked: bytes | None, expected: float) -> None:
    assert timeout_of({} if asked is None else {b"x-ichat-timeout-s": asked}, 300.0) == expected


@pytest.mark.parametrize(
    "asked", [b"", b"0", b"0.0", b"-1", b"86400.1", b"nan", b"inf", b"1e3", b"1_0", b"5s", b"\xb2", b"9" * 5000]
)
def test_a_wrong_timeout_is_told_what_to_send(asked: bytes) -> None:
    with pytest.raises(BadRequest, match=r"x-ichat-timeout-s.*at most 86400"):
        timeout_of({b"x-ichat-timeout-s": asked}, 300.0)


@given(st.binary(max_size=20))
def test_no_header_breaks_anything(asked: bytes) -> None:
    for read in (lambda: priority_of({b"x-ichat-priority": asked}, 0),
                 lambda: timeout_of({b"x-ichat-timeout-s": asked}, 1.0)):  # fmt: skip
        try:
            read()
        except BadRequest as error:
            assert error.code in ("invalid_priority", "invalid_timeout")


def test_a_notice_counts_as_people_do() -> None:
    assert queue_notice(2, 11.2) == b": queued position=3 eta_s=12\n\n"
    assert queue_notice(0, None) == b": queued position=1\n\n"


@pytest.mark.share("litellm")  # which imports the client too: it takes a second
def test_a_notice_is_no_event_to_a_client() -> None:
    from openai._streaming import SSEDecoder

    stream = queue_notice(2, 12.0) + queue_notice(1, None) + b"data: x\n\n"
    assert [event.data for event in SSEParser().feed(stream)] == ["x"]
    assert [event.data for event in SSEDecoder().iter_bytes(iter([stream]))] == ["x"]
