"""The order in which waiting requests are served."""

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.admission.fair_queue import Entry, FairQueue, QueueFull
from tests.doubles import PATIENT

WEIGHTS = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 0.5, "e": 3.0}


def entry(key: str, priority: int = 5, weight: float = 0.0) -> Entry:
    return Entry(key, priority, weight or WEIGHTS.get(key, 1.0), arrived=0, deadline=1)


KEYS = st.sampled_from(sorted(WEIGHTS))
ENTRIES = st.builds(entry, KEYS, st.sampled_from([2, 5, 8]))
STEPS = st.lists(st.one_of(ENTRIES, st.just("pop"), st.integers(0, 40)), max_size=60)
"""An entry comes, the next is served, or the one that stands at a place leaves."""


def queue_of(entries: list[Entry], limit: int = 1000) -> FairQueue[Entry]:
    queue: FairQueue[Entry] = FairQueue(limit)
    for each in entries:
        assert queue.push(each) is None
    return queue


def served(queue: FairQueue[Entry]) -> Iterator[Entry]:
    while (each := queue.pop()) is not None:
        yield each


def keys(queue: FairQueue[Entry]) -> str:
    return "".join(each.key for each in served(queue))


def play(queue: FairQueue[Entry], steps: list[object]) -> tuple[list[Entry], list[Entry]]:
    """Returns those served, in order, and those that left otherwise."""
    out: list[Entry] = []
    gone: list[Entry] = []
    for step in steps:
        if isinstance(step, Entry):
            queue.push(step)
        elif step == "pop":
            expected = next(queue.order(), None)
            each = queue.pop()
            assert each is expected
            out += [each] if each else []
        elif isinstance(step, int) and step < len(queue):
            leaver = list(queue.order())[step]
            assert queue.position(leaver) == step
            assert queue.remove(leaver)
            assert not queue.remove(leaver)
            gone.append(leaver)
    return out, gone


# -- order ---------------------------------------------------------------------------------------------------------


def test_one_key_is_served_as_it_comes() -> None:
    entries = [entry("a") for _ in range(5)]
    assert list(served(queue_of(entries))) == entries


def test_a_thousand_of_one_key_do_not_delay_another() -> None:
    many, one = [entry("a") for _ in range(999)], entry("b")
    queue = queue_of([*many, one])
    assert queue.position(one) == 1


def test_the_same_while_the_many_are_being_served() -> None:
    queue = queue_of([entry("a") for _ in range(999)])
    for _ in range(500):
        queue.pop()
    one = entry("b")
    queue.push(one)
    assert queue.position(one) <= 1


def test_keys_with_equal_weights_take_turns() -> None:
    assert keys(queue_of([entry(key) for key in "aaabbb"])) == "ababab"


def test_a_key_of_twice_the_weight_gets_twice_as_much() -> None:
    order = keys(queue_of([entry(key) for key in "a" * 30 + "c" * 30]))
    assert Counter(order[:30]) == {"a": 10, "c": 20}


def test_a_more_urgent_class_goes_first() -> None:
    low, normal, high = entry("a", 8), entry("a", 5), entry("b", 2)
    assert list(served(queue_of([low, normal, high]))) == [high, normal, low]


def test_a_key_that_was_idle_has_saved_up_nothing() -> None:
    queue = queue_of([entry("a") for _ in range(200)])
    for _ in range(100):
        queue.pop()
    for _ in range(50):
        queue.push(entry("b"))
    order = keys(queue)
    assert Counter(order[:40]) == {"a": 20, "b": 20}


def test_a_key_that_asks_for_one_at_a_time_gets_no_more_than_one_that_queues() -> None:
    queue = queue_of([entry("a") for _ in range(100)])
    order = ""
    queue.push(entry("b"))
    for _ in range(40):
        each = queue.pop()
        assert each is not None
        order += each.key
        if each.key == "b":
            queue.push(entry("b"))
    assert Counter(order) == {"a": 20, "b": 20}


def test_requests_that_leave_do_not_delay_those_behind_them() -> None:
    leavers, last, other = [entry("a") for _ in range(500)], entry("a"), [entry("b") for _ in range(100)]
    queue = queue_of([*leavers, last, *other])
    for each in leavers:
        queue.remove(each)
    assert queue.position(last) <= 1


def test_coming_and_leaving_again_leaves_nothing_behind() -> None:
    queue = queue_of([entry("a")])
    for _ in range(1000):
        each = entry("b")
        queue.push(each)
        queue.remove(each)
    assert len(queue._rounds[5]._heap) == 2  # one place a key, however often it came
    assert keys(queue) == "a"
    assert not queue._rounds


def test_who_does_not_wait_has_no_position() -> None:
    with pytest.raises(ValueError, match="does not wait"):
        queue_of([entry("a")]).position(entry("a"))


def test_an_empty_queue_has_nobody() -> None:
    queue = queue_of([])
    assert queue.pop() is None
    assert list(queue.order()) == []
    assert not queue.remove(entry("a"))


@PATIENT
@given(STEPS)
def test_nobody_is_lost_and_nobody_served_twice(steps: list[object]) -> None:
    queue = queue_of([])
    out, gone = play(queue, steps)
    waiting = list(queue.order())
    assert sorted(map(id, waiting)) == sorted(map(id, queue))
    assert len(waiting) == len(queue) == queue.count_keys().total()
    out += served(queue)
    assert sorted(map(id, [*out, *gone])) == sorted(id(step) for step in steps if isinstance(step, Entry))


@PATIENT
@given(STEPS)
def test_the_announced_order_is_that_of_service(steps: list[object]) -> None:
    queue = queue_of([])
    play(queue, steps)
    announced = list(queue.order())
    assert [queue.position(each) for each in announced] == list(range(len(announced)))
    assert list(served(queue)) == announced


@PATIENT
@given(STEPS)
def test_within_a_class_and_a_key_arrival_decides(steps: list[object]) -> None:
    queue = queue_of([])
    play(queue, steps)
    arrival = {id(step): number for number, step in enumerate(steps)}
    left = list(served(queue))
    assert [each.priority for each in left] == sorted(each.priority for each in left)
    for line in {(each.key, each.priority) for each in left}:
        numbers = [arrival[id(each)] for each in left if (each.key, each.priority) == line]
        assert numbers == sorted(numbers)


@PATIENT
@given(st.lists(st.one_of(KEYS, st.none()), max_size=80), st.integers(0, 40))
def test_two_keys_that_both_wait_get_their_shares(steps: list[str | None], pops: int) -> None:
    """The bound of the paper's theorem 1: services by weight differ by at most 1/w + 1/w of the two, at any time."""
    queue = queue_of([entry(key) for key in "ae" for _ in range(pops)])
    for key in steps:
        queue.push(entry(key)) if key else queue.pop()
    waiting = queue.count_keys()
    one, other = "a", "e"
    if waiting[one] < pops or waiting[other] < pops:  # one of them ran out within what follows: no promise
        pops = min(waiting[one], waiting[other])
    got = Counter(each.key for _ in range(pops) if (each := queue.pop()))
    difference = abs(got[one] / WEIGHTS[one] - got[other] / WEIGHTS[other])
    assert difference <= 1 / WEIGHTS[one] + 1 / WEIGHTS[other] + 1e-9


@pytest.mark.parametrize(
    ("waiting", "newcomer", "ahead"),
    [
        ("", "a", 0), ("a" * 20, "a", 20), ("a" * 20, "b", 1), ("a" * 20 + "b" * 5, "b", 11),
        ("a" * 20 + "b" * 30, "b", 50), ("a" * 20, "c", 1), ("a" * 20 + "c" * 10, "c", 16),
    ],
)  # fmt: skip
def test_a_newcomers_place_is_behind_its_own_and_what_the_others_get_meanwhile(
    waiting: str, newcomer: str, ahead: int
) -> None:
    queue = queue_of([entry(key) for key in waiting])
    assert queue.ahead_of(entry(newcomer)) == ahead
    last = entry(newcomer)
    queue.push(last)
    assert queue.position(last) == ahead
    assert queue.ahead_of(entry(newcomer, 2)) == 0
    assert queue.ahead_of(entry(newcomer, 8)) == len(waiting) + 1


@PATIENT
@given(STEPS, ENTRIES)
def test_the_place_of_a_newcomer_is_foretold(steps: list[object], newcomer: Entry) -> None:
    """To within one place a key: equal tags, and tags that differ by what floats lose, may be served either way."""
    queue = queue_of([])
    play(queue, steps)
    foretold = queue.ahead_of(newcomer)
    assert len(queue) >= foretold
    queue.push(newcomer)
    assert abs(queue.position(newcomer) - foretold) <= len(WEIGHTS)


# -- a full queue --------------------------------------------------------------------------------------------------


def test_a_full_queue_takes_nobody_of_the_same_right() -> None:
    queue = queue_of([entry("a"), entry("b")], limit=2)
    for key in "abc":
        with pytest.raises(QueueFull):
            queue.push(entry(key, weight=1.0))
    assert len(queue) == 2


def test_a_queue_without_room_takes_nobody() -> None:
    with pytest.raises(QueueFull):
        queue_of([], limit=0).push(entry("a", 0))


def test_a_more_urgent_one_pushes_out_the_last_of_the_least_urgent() -> None:
    first, last, normal = entry("a", 8), entry("a", 8), entry("b", 5)
    queue = queue_of([first, last, normal], limit=3)
    urgent = entry("c", 2)
    assert queue.push(urgent) is last
    assert list(served(queue)) == [urgent, normal, first]


def test_a_less_urgent_one_pushes_out_nobody() -> None:
    queue = queue_of([entry("a", 2)], limit=1)
    with pytest.raises(QueueFull):
        queue.push(entry("b", 8))


def test_a_greedy_key_makes_room_for_others_until_they_wait_with_as_much() -> None:
    queue = queue_of([entry("a") for _ in range(10)], limit=10)
    for _ in range(5):
        pushed_out = queue.push(entry("b"))
        assert pushed_out is not None
        assert pushed_out.key == "a"
    assert queue.count_keys() == {"a": 5, "b": 5}
    for key in "ab":
        with pytest.raises(QueueFull):
            queue.push(entry(key))


def test_the_one_pushed_out_is_the_last_that_its_key_sent() -> None:
    entries = [entry("a") for _ in range(3)]
    assert queue_of(entries, limit=3).push(entry("b")) is entries[-1]


@PATIENT
@given(st.lists(ENTRIES, max_size=60), st.integers(0, 8))
def test_a_queue_never_holds_more_than_its_limit(entries: list[Entry], limit: int) -> None:
    queue: FairQueue[Entry] = FairQueue(limit)
    out: list[Entry] = []
    for each in entries:
        try:
            pushed_out = queue.push(each)
        except QueueFull:
            pushed_out = each
        else:
            assert pushed_out is None or pushed_out.priority >= each.priority
        out += [pushed_out] if pushed_out else []
        assert len(queue) <= limit
    assert sorted(map(id, [*out, *served(queue)])) == sorted(map(id, entries))
