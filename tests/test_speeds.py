"""How fast replicas are, learned from their beats."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.routing.speeds import UNKNOWN_SPEED, Speeds
from tests.doubles import PATIENT


def report(timed: float, prefill_s: float, decode_s: float) -> dict[str, Any]:
    return {"timed": timed, "prefill_s": prefill_s, "decode_s": decode_s}


def test_a_steady_replica_is_known_after_some_beats() -> None:
    speeds = Speeds()
    for beat in range(40):
        speeds.take_report("w", report(beat * 10, beat * 2.0, beat * 28.0))
        speeds.sent("w", 4000)
    speed = speeds.by_worker["w"]
    assert speed.prefill_s_per_byte == pytest.approx(2.0 / 4000, rel=0.01)
    assert speed.service_s == pytest.approx(3.0, rel=0.01)


@pytest.mark.parametrize("load", [{}, {"timed": 0}, {"timed": "many"}, {"running": 3}])
def test_who_reports_nothing_teaches_nothing(load: dict[str, Any]) -> None:
    speeds = Speeds()
    for _ in range(3):
        speeds.take_report("w", load)
        speeds.sent("w", 100)
    assert speeds.by_worker == {}


def test_a_new_process_begins_at_nothing() -> None:
    speeds = Speeds()
    speeds.take_report("w", report(100, 10, 10))
    speeds.take_report("w", report(0, 0, 0))
    assert speeds.by_worker == {}
    speeds.take_report("w", report(1, 1, 1))
    assert speeds.by_worker["w"].service_s == pytest.approx(UNKNOWN_SPEED.service_s + 0.3)


def test_a_forgotten_one_is_unknown() -> None:
    speeds = Speeds()
    for beat in range(3):
        speeds.take_report("w", report(beat, beat, beat))
    speeds.forget("w")
    assert speeds.by_worker == {}


NUMBERS = st.floats(0, 1e6) | st.integers(0, 10**6)


@PATIENT
@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, st.integers(0, 10**9))))
def test_whatever_is_reported_speeds_stay_numbers(beats: list[tuple[float, float, float, int]]) -> None:
    speeds = Speeds()
    for timed, prefill_s, decode_s, sent in beats:
        speeds.take_report("w", report(timed, prefill_s, decode_s))
        speeds.sent("w", sent)
    for speed in speeds.by_worker.values():
        assert math.isfinite(speed.prefill_s_per_byte)
        assert speed.prefill_s_per_byte > 0
        assert math.isfinite(speed.service_s)
        assert speed.service_s >= 0
