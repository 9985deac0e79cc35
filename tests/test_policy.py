"""Which replica gets a request."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from monitor.registry import Replica
from relay.policy import choose
from tests.doubles import PATIENT

IDS = st.sampled_from("abcdef")


def replicas(ids: list[str]) -> tuple[Replica, ...]:
    return tuple(Replica(worker_id, "127.0.0.1", 8000) for worker_id in ids)


@PATIENT
@given(
    st.lists(IDS, unique=True),
    st.dictionaries(IDS, st.integers(0, 3)),
    st.lists(IDS, max_size=4),
    st.integers().map(random.Random),
)
def test_the_chosen_one_is_untried_and_has_the_fewest_in_flight(
    ids: list[str], in_flight: dict[str, int], tried: list[str], rng: random.Random
) -> None:
    chosen = choose(replicas(ids), in_flight, tried, rng)
    untried = [worker_id for worker_id in ids if worker_id not in tried]
    if chosen is None:
        assert not untried
    else:
        assert chosen.worker_id in untried
        assert in_flight.get(chosen.worker_id, 0) == min(in_flight.get(worker_id, 0) for worker_id in untried)


def test_no_replicas_is_no_choice() -> None:
    assert choose((), {}, (), random.Random(1)) is None


def test_ties_are_broken_evenly() -> None:
    rng = random.Random(1)
    in_flight = {"a": 1, "e": 1}
    chosen = [choose(replicas(list("abcde")), in_flight, (), rng) for _ in range(3000)]
    counts = Counter(replica.worker_id for replica in chosen if replica is not None)
    assert set(counts) == {"b", "c", "d"}
    assert all(900 < count < 1100 for count in counts.values())


def test_the_last_random_number_before_one_stays_in_range() -> None:
    class Highest(random.Random):
        def random(self) -> float:
            return 1 - 2**-53

    chosen = choose(replicas(["a", "b"]), {}, (), Highest())
    assert chosen is not None
    assert chosen.worker_id == "b"
