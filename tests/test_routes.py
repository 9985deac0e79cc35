"""What a change of one worker costs where there are many."""

import pytest

from monitor.heartbeat import Heartbeat
from monitor.registry import WorkerRegistry
from relay.words import describe_workers
from tests.steps import steps

CHAT = "/v1/chat/completions"


def beat(number: int, model: str, **more: object) -> Heartbeat:
    values = {"worker_id": f"w{number}", "model_name": model, "backend": "x", "host": "h", "port": 1000 + number}
    return Heartbeat.model_validate({**values, **more})


def registry_of(models: int) -> WorkerRegistry:
    """As many models, each with a worker and five aliases."""
    registry = WorkerRegistry()
    for number in range(models):
        registry.upsert(beat(number, f"m{number}", aliases=[f"m{number}-{alias}" for alias in range(5)]), now=0)
    return registry


def test_a_worker_that_comes_back_costs_the_same_among_few_and_many_models() -> None:
    cost = {}
    for models in (3, 100):
        registry = registry_of(models)
        registry.mark_unreachable("w1", "gone")
        cost[models] = steps(lambda registry=registry: registry.mark_reachable("w1"))  # type: ignore[misc]
        assert [replica.worker_id for replica in registry.route("m1-3") or ()] == ["w1"]
    assert cost[100] == cost[3]


def test_an_adapter_more_costs_little_at_a_worker_that_has_many() -> None:
    cost = {}
    for adapters in (3, 100):
        registry = WorkerRegistry()
        names = [f"a{number}" for number in range(adapters)]
        registry.upsert(beat(1, "m", adapters=names), now=0)
        more = beat(1, "m", adapters=[*names, "another"])
        cost[adapters] = steps(lambda registry=registry, more=more: registry.upsert(more, now=0))  # type: ignore[misc]
        assert registry.route("another") == registry.route("m")
        assert registry.models() == sorted(["m", "another", *names])
    assert cost[100] == cost[3]


def test_to_find_a_models_other_names_costs_nothing_of_the_others() -> None:
    registry = registry_of(100)
    assert steps(lambda: registry.names_of("m7")) < 10
    assert registry.names_of("m7") == ["m7", *(f"m7-{alias}" for alias in range(5))]


def test_an_error_looks_at_the_models_own_workers_only() -> None:
    registry = registry_of(100)
    assert steps(lambda: describe_workers(registry, "m7", CHAT)) < 50
    assert describe_workers(registry, "m7", CHAT) == "w7 is ready"
    assert describe_workers(registry, "unknown", CHAT) == "its workers have gone"


@pytest.mark.parametrize("comes_back", [True, False])
def test_the_version_tells_of_changes_that_routing_is_concerned_with(comes_back: bool) -> None:
    registry = registry_of(2)
    before = registry.version
    registry.upsert(beat(1, "m1", aliases=[f"m1-{alias}" for alias in range(5)], load={"timed": 3}), now=1)
    assert registry.version == before
    registry.mark_unreachable("w1", "gone")
    assert registry.version == before + 1
    if comes_back:
        registry.mark_reachable("w1")
    else:
        registry.forget("w1")
    assert registry.version == before + 2
