"""How long to wait before a worker that died is started again."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.backoff import LONGEST_S, next_delay
from tests.doubles import PATIENT


@pytest.mark.parametrize(("failures", "seconds"), [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (8, 60), (10**9, 60)])
def test_the_wait_doubles_up_to_a_minute(failures: int, seconds: float) -> None:
    delays = [next_delay(failures, random.Random(seed)) for seed in range(50)]
    assert all(abs(delay - seconds) <= 0.2 * seconds for delay in delays)


@PATIENT
@given(st.integers(-5, 10_000), st.randoms(use_true_random=False))
def test_the_wait_is_never_nothing_and_never_long(failures: int, rng: random.Random) -> None:
    assert 0.5 < next_delay(failures, rng) <= LONGEST_S * 1.2


def test_workers_that_died_together_do_not_start_together() -> None:
    rng = random.Random(1)
    assert len({next_delay(3, rng) for _ in range(20)}) == 20
