"""Why requests went where they went: as it was then, whenever it is asked."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.registry import Replica
from relay.routing.decisions import MAX_CANDIDATES, Decision, DecisionLog
from relay.routing.policy import View, cost_s, expected_wait_s
from relay.routing.prefix import Share
from relay.routing.speeds import Speed
from tests.doubles import PATIENT

IDS = [f"w{number}" for number in range(MAX_CANDIDATES + 4)]
SPEED = st.builds(Speed, st.floats(1e-6, 1e-3), st.floats(0.01, 10))


def some(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(IDS), values)


VIEWS = st.builds(
    View,
    st.integers(1, len(IDS)).map(lambda count: tuple(Replica(name, "h", 1) for name in IDS[:count])),
    some(st.integers(1, 100)),
    st.just(random.Random(1)),
    weights=some(st.floats(0.1, 10)),
    share=st.builds(Share, st.just(10_000), some(st.integers(0, 10_000))),
    pending=some(st.integers(1, 100_000)),
    speeds=some(SPEED),
)


@PATIENT
@given(VIEWS)
def test_a_decision_is_shown_as_it_was_made(view: View) -> None:
    expected = [
        {
            "worker_id": replica.worker_id,
            "in_flight": view.load(replica),
            "cached_bytes": view.share.cached.get(replica.worker_id, 0),
            "expected_wait_s": round(expected_wait_s(view, replica), 4),
            "cost_s": round(cost_s(view, replica), 4),
        }
        for replica in view.replicas[:MAX_CANDIDATES]
    ]
    decision = Decision(b"r", "w0", "cache_aware", 1, view)
    mappings: list[Any] = [view.in_flight, view.pending, view.speeds]
    for mapping in mappings:  # they go on changing
        mapping.clear()
        mapping.update(dict.fromkeys(IDS, Speed(1, 1) if mapping is view.speeds else 7))
    assert decision.view()["candidates"] == expected


def test_what_a_policy_does_not_look_at_is_not_told() -> None:
    replicas = tuple(Replica(name, "h", 1) for name in IDS[:2])
    told = Decision(b"r", "w0", "round_robin", 1, View(replicas, {"w0": 3}, random.Random(1))).view()
    assert "prompt_bytes" not in told
    assert told["candidates"] == [{"worker_id": "w0", "in_flight": 3}, {"worker_id": "w1", "in_flight": 0}]


@pytest.mark.parametrize(("count", "reason"), [(1, "the only one"), (2, "0 of 0 bytes cached")])
def test_its_reason_is_told_in_words(count: int, reason: str) -> None:
    replicas = tuple(Replica(name, "h", 1) for name in IDS[:count])
    assert reason in Decision(b"r", "w0", "cache_aware", 1, View(replicas, {}, random.Random(1))).reason()


def test_a_log_tells_the_newest_first_and_forgets_the_oldest() -> None:
    log = DecisionLog(2)
    for number in range(3):
        view = View((Replica("w", "h", 1),), {}, random.Random(1))
        log.add("m", Decision(b"%d" % number, "w", "random", 1, view))
    assert [each["request_id"] for each in log.last("m")] == ["2", "1"]
    assert log.last("other") == []
