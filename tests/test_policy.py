"""Which replica gets a request."""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.registry import Replica
from relay.policy import POLICIES, View, at_random, choose, least_load, power_of_two, round_robin, session
from tests.doubles import PATIENT

IDS = st.sampled_from("abcdef")
LOADS = st.dictionaries(IDS, st.integers(0, 3))


def replicas(ids: Sequence[str]) -> tuple[Replica, ...]:
    return tuple(Replica(worker_id, "127.0.0.1", 8000) for worker_id in ids)


def view(ids: Sequence[str], in_flight: Mapping[str, int], rng: random.Random, **more: object) -> View:
    return View(replicas(ids), in_flight, rng, **more)  # type: ignore[arg-type]


@PATIENT
@given(
    st.sampled_from(sorted(POLICIES)), st.lists(IDS, unique=True), LOADS, st.lists(IDS, max_size=4),
    st.integers().map(random.Random), st.integers(0), st.binary(max_size=3),
)  # fmt: skip
def test_every_policy_chooses_an_untried_replica_while_there_is_one(
    name: str, ids: list[str], in_flight: dict[str, int], tried: list[str], rng: random.Random, turn: int, key: bytes
) -> None:
    chosen = choose(POLICIES[name], view(ids, in_flight, rng, turn=turn, session=key), tried)
    untried = [worker_id for worker_id in ids if worker_id not in tried]
    assert (chosen is None) == (not untried)
    assert chosen is None or chosen.worker_id in untried


@PATIENT
@given(st.lists(IDS, unique=True, min_size=1), LOADS, st.integers().map(random.Random))
def test_least_load_has_the_fewest_in_flight(ids: list[str], in_flight: dict[str, int], rng: random.Random) -> None:
    chosen = least_load(view(ids, in_flight, rng))
    assert in_flight.get(chosen.worker_id, 0) == min(in_flight.get(worker_id, 0) for worker_id in ids)


@PATIENT
@given(st.lists(IDS, unique=True, min_size=2), LOADS, st.integers().map(random.Random))
def test_power_of_two_never_takes_the_worst(ids: list[str], in_flight: dict[str, int], rng: random.Random) -> None:
    loads = sorted(in_flight.get(worker_id, 0) for worker_id in ids)
    chosen = power_of_two(view(ids, in_flight, rng))
    assert in_flight.get(chosen.worker_id, 0) <= loads[-2]


def test_ties_are_broken_evenly() -> None:
    rng = random.Random(1)
    in_flight = {"a": 1, "e": 1}
    counts = Counter(least_load(view("abcde", in_flight, rng)).worker_id for _ in range(3000))
    assert set(counts) == {"b", "c", "d"}
    assert all(900 < count < 1100 for count in counts.values())


@pytest.mark.parametrize("policy", [at_random, power_of_two])
def test_chance_is_fair(policy: object) -> None:
    rng = random.Random(1)
    counts = Counter(policy(view("abc", {}, rng)).worker_id for _ in range(3000))  # type: ignore[operator]
    assert all(900 < count < 1100 for count in counts.values())


def test_round_robin_goes_around() -> None:
    rng = random.Random(1)
    chosen = "".join(round_robin(view("abc", {"a": 9}, rng, turn=turn)).worker_id for turn in range(6))
    assert chosen == "abcabc"


def test_the_last_random_number_before_one_stays_in_range() -> None:
    class Highest(random.Random):
        def random(self) -> float:
            return 1 - 2**-53

    for policy in (least_load, at_random, power_of_two):
        assert policy(view("ab", {}, Highest())).worker_id in "ab"


# -- sessions ------------------------------------------------------------------------------------------------------


def test_a_session_stays_where_it_is() -> None:
    rng = random.Random(1)
    chosen = {session(view("abcd", {}, rng, session=b"alice")).worker_id for _ in range(100)}
    assert len(chosen) == 1


def test_sessions_are_spread() -> None:
    rng = random.Random(1)
    counts = Counter(session(view("abcd", {}, rng, session=b"%d" % number)).worker_id for number in range(4000))
    assert all(800 < count < 1200 for count in counts.values())


@PATIENT
@given(st.binary(min_size=1), st.integers().map(random.Random))
def test_one_that_comes_or_goes_moves_only_its_own(key: bytes, rng: random.Random) -> None:
    before = session(view("abcdef", {}, rng, session=key)).worker_id
    for gone in "abcdef":
        after = session(view([each for each in "abcdef" if each != gone], {}, rng, session=key)).worker_id
        assert before in (after, gone)


@PATIENT
@given(st.binary(min_size=1), LOADS, st.integers().map(random.Random))
def test_no_session_goes_where_far_more_is_to_do(key: bytes, in_flight: dict[str, int], rng: random.Random) -> None:
    chosen = session(view("abcdef", in_flight, rng, session=key))
    fair = (sum(in_flight.values()) + 1) / 6
    assert in_flight.get(chosen.worker_id, 0) + 1 <= math.ceil(1.25 * fair)


def test_a_request_without_a_session_goes_where_the_load_is_least() -> None:
    assert session(view("abc", {"a": 1, "b": 1}, random.Random(1))).worker_id == "c"
