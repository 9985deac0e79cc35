"""Which replica gets a request."""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.registry import Replica
from relay.routing.policy import (
    POLICIES,
    SLACK,
    View,
    at_random,
    cache_aware,
    choose,
    cost_s,
    least_load,
    power_of_two,
    round_robin,
    session,
    untried,
)
from relay.routing.prefix import Share
from relay.routing.speeds import Speed
from tests.doubles import PATIENT

IDS = st.sampled_from("abcdef")
LOADS = st.dictionaries(IDS, st.integers(0, 3))


def replicas(ids: Sequence[str]) -> tuple[Replica, ...]:
    return tuple(Replica(worker_id, "127.0.0.1", 8000) for worker_id in ids)


def view(ids: Sequence[str], in_flight: Mapping[str, int], rng: random.Random, **more: object) -> View:
    return View(replicas(ids), in_flight, rng, **more)  # type: ignore[arg-type]


WEIGHTS = st.dictionaries(IDS, st.floats(0.01, 100))
SHARES = st.builds(Share, st.just(1000), st.dictionaries(IDS, st.integers(0, 1000)))


@PATIENT
@given(
    st.sampled_from(sorted(POLICIES)), st.lists(IDS, unique=True), LOADS, st.lists(IDS, max_size=4),
    st.integers().map(random.Random), st.integers(0), st.binary(max_size=3), WEIGHTS, SHARES,
)  # fmt: skip
def test_every_policy_chooses_an_untried_replica_while_there_is_one(
    name: str, ids: list[str], in_flight: dict[str, int], tried: list[str], rng: random.Random, turn: int, key: bytes,
    weights: dict[str, float], share: Share,
) -> None:  # fmt: skip
    seen = view(ids, in_flight, rng, turn=turn, session=key, weights=weights, share=share)
    chosen = choose(POLICIES[name], seen._replace(replicas=untried(seen.replicas, tried)))
    left = [worker_id for worker_id in ids if worker_id not in tried]
    assert (chosen is None) == (not left)
    assert chosen is None or chosen.worker_id in left


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


# -- weights and places --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [at_random, round_robin, session])
def test_a_replica_of_twice_the_weight_gets_twice_as_many(policy: object) -> None:
    rng = random.Random(1)
    views = (view("ab", {}, rng, turn=n, session=b"%d" % n, weights={"a": 2.0}) for n in range(3000))
    counts = Counter(policy(each).worker_id for each in views)  # type: ignore[operator]
    assert 1850 < counts["a"] < 2150


@pytest.mark.parametrize("policy", [least_load, power_of_two])
def test_load_counts_by_weight(policy: object) -> None:
    seen = view("ab", {"a": 3, "b": 2}, random.Random(1), weights={"a": 2.0})
    assert policy(seen).worker_id == "a"  # type: ignore[operator]


def test_the_own_host_comes_first_until_it_has_far_more_to_do() -> None:
    far, local, named = (
        Replica("f", "10.0.0.2", 1, node="far"),
        Replica("l", "127.0.0.1", 1),
        Replica("n", "h", 1, node="me"),
    )
    seen = View((far, local), {"l": 1}, random.Random(1), node="me")
    assert choose(least_load, seen, is_local_first=True) == local
    assert choose(least_load, seen._replace(in_flight={"l": 5}), is_local_first=True) == far
    assert choose(least_load, seen._replace(replicas=(far, named)), is_local_first=True) == named
    left = untried(seen.replicas, ["l"])
    assert choose(least_load, seen._replace(in_flight={}, replicas=left), is_local_first=True) == far


# -- caches --------------------------------------------------------------------------------------------------------


def cached_at(ids: str, in_flight: Mapping[str, int], cached: Mapping[str, int], **more: object) -> View:
    return view(ids, in_flight, random.Random(1), share=Share(8000, cached), **more)


def test_the_one_that_has_the_prompt_gets_it() -> None:
    assert cache_aware(cached_at("abc", {}, {"b": 7000, "c": 4000})).worker_id == "b"


def test_a_small_share_is_not_worth_waiting_for() -> None:
    assert cache_aware(cached_at("ab", {"a": 3}, {"a": 500})).worker_id == "b"


def test_a_long_prompt_is_worth_a_short_wait() -> None:
    assert cache_aware(cached_at("ab", {"a": 2}, {"a": 8000})).worker_id == "a"


def test_a_cached_prompt_yields_to_balance() -> None:
    loads = {"a": SLACK + 1}
    assert cache_aware(cached_at("ab", loads, {"a": 8000}, speeds={"b": Speed(1.0, 1.0)})).worker_id == "b"


def test_what_is_still_to_be_read_there_counts() -> None:
    assert cache_aware(cached_at("ab", {}, {"a": 4000}, pending={"a": 12000})).worker_id == "b"


def test_who_shares_a_prompt_that_is_being_read_waits_for_it() -> None:
    """Instead of having it read once more, which would take as long, and keep others back."""
    assert cache_aware(cached_at("ab", {"a": 1}, {"a": 7500}, pending={"a": 8000})).worker_id == "a"


def test_a_replica_that_reads_much_already_gets_no_more_of_the_same() -> None:
    assert cache_aware(cached_at("ab", {"a": 3}, {"a": 7500}, pending={"a": 20000})).worker_id == "b"


def test_a_faster_replica_is_preferred() -> None:
    speeds = {"a": Speed(0.001, 1.0), "b": Speed(0.0001, 1.0)}
    assert cache_aware(cached_at("ab", {}, {}, speeds=speeds)).worker_id == "b"


def test_of_equals_the_one_that_got_fewest_so_far() -> None:
    assert cache_aware(cached_at("abc", {}, {}, sent={"a": 2, "b": 1, "c": 2})).worker_id == "b"


@PATIENT
@given(st.lists(IDS, unique=True, min_size=2), LOADS, SHARES)
def test_the_cost_is_least_among_those_in_balance(ids: list[str], loads: dict[str, int], share: Share) -> None:
    seen = view(ids, loads, random.Random(1), share=share)
    chosen = cache_aware(seen)
    limit = 2 * min(map(seen.load, seen.replicas)) + SLACK
    fitting = [replica for replica in seen.replicas if seen.load(replica) <= limit]
    assert chosen in fitting
    assert cost_s(seen, chosen) == min(cost_s(seen, replica) for replica in fitting)
