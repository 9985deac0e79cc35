"""Models, adapters and workers that come and go under ever new names leave nothing behind."""

from collections.abc import Callable, Mapping, Set

import pytest

from monitor.heartbeat import Heartbeat
from relay.admission.admission import Admission
from relay.call import Call
from relay.flight import Flight
from relay.request import parse_fields
from relay.routing.breaker import Breakers
from relay.routing.decisions import DecisionLog
from relay.routing.router import Router
from relay.routing.speeds import Speeds
from relay.routing.unread import MAX_OF_MODEL, Prompt, Unread
from relay.upstream.exchange import ConnectionBroken
from tests.steps import steps
from tests.test_many_queues import CHAT, Crowd
from tests.upstream_double import Wire

pytestmark = pytest.mark.anyio

TEXT = b"x" * 1000


def beat(worker_id: str, model: str, port: int, adapters: tuple[str, ...] = ()) -> Heartbeat:
    return Heartbeat(worker_id=worker_id, model_name=model, adapters=adapters, backend="x", host="h", port=port)


def new_flight(crowd: Crowd) -> Flight:
    return Flight(Call(Wire(), lambda: None, lambda _: None, CHAT, CHAT.encode(), [], 10_000), crowd.plane.relay)


def flight_for(crowd: Crowd, model: str) -> None:
    """One that is sent to a worker of the model, and has its answer."""
    router, flight = crowd.plane.router, new_flight(crowd)
    flight.body = b'{"model": "%b", "prompt": "%b"}' % (model.encode(), TEXT)
    flight.model, flight.fields = model, parse_fields(flight.body)
    assert router.choose(flight, crowd.registry.route(model) or ()) is not None
    crowd.plane.lobby.landed(flight)
    assert flight.placing is not None
    router.land(flight.placing)


def a_model_of_its_own(crowd: Crowd, number: int) -> None:
    """On two new workers at new ports."""
    workers = [f"new-{number}-{each}" for each in range(2)]
    for port, worker_id in enumerate(workers):
        crowd.registry.upsert(beat(worker_id, f"model-{number}", 1000 + port), now=0)
        flight_for(crowd, f"model-{number}")
    for worker_id in workers:
        crowd.registry.forget(worker_id)


def an_adapter(crowd: Crowd, number: int) -> None:
    """At two workers that stay."""
    for worker_id, port in (("a", 901), ("b", 902)):
        crowd.registry.upsert(beat(worker_id, "base", port, (f"adapter-{number}",)), now=0)
        flight_for(crowd, f"adapter-{number}")
    for worker_id, port in (("a", 901), ("b", 902)):
        crowd.registry.upsert(beat(worker_id, "base", port), now=0)


def a_worker_that_fails_late(crowd: Crowd, number: int) -> None:
    """It has gone when its last request fails."""
    worker_id = f"late-{number}"
    worker = crowd.registry.upsert(beat(worker_id, "other", 950), now=0)
    crowd.registry.forget(worker_id)
    flight = new_flight(crowd)
    flight.worker = worker_id
    crowd.plane.relay._dispatcher._note_failure(flight, worker.replica, ConnectionBroken("closed"))


def entries(part: object) -> int:
    """In all that it keeps, and in what its own parts keep."""
    if isinstance(part, Mapping | Set):
        return len(part)
    own = isinstance(part, Router | Speeds | DecisionLog | Unread | Breakers | Admission)
    return sum(map(entries, vars(part).values())) if own else 0


@pytest.mark.parametrize("come_and_go", [a_model_of_its_own, an_adapter, a_worker_that_fails_late])
async def test_what_has_gone_is_forgotten(come_and_go: Callable[[Crowd, int], None]) -> None:
    crowd = Crowd(1)
    counts = []
    for number in range(30):
        come_and_go(crowd, number)
        crowd.plane.lobby.call_next()
        if number in (9, 29):
            counts.append([entries(part) for part in (crowd.plane.router, crowd.plane.lobby.admission)])
    crowd.close()
    assert counts[0] == counts[1]


def prompt(worker_id: str = "w", size: int = 100) -> Prompt:
    return Prompt(parse_fields(b'{"model": "m"}'), worker_id, size)


def test_the_last_prompts_of_each_model_are_kept() -> None:
    unread = Unread()
    for number in range(MAX_OF_MODEL + 5):
        unread.add("m", prompt(str(number)))
    unread.add("n", prompt())
    assert unread.size == 100 * (MAX_OF_MODEL + 1)
    assert [each.worker_id for each in unread.take("m")] == [str(number) for number in range(5, MAX_OF_MODEL + 5)]
    assert not unread.take("m")
    assert (len(unread), unread.size) == (1, 100)


def test_all_prompts_together_have_a_bound() -> None:
    unread = Unread(max_bytes=1000)
    for number in range(50):
        unread.add(f"m{number}", prompt())
        unread.add("busy", prompt(str(number)))
        assert unread.size <= 1000
    assert "49" in [each.worker_id for each in unread.take("busy")]
    assert not unread.take("m0")


def test_prompts_that_were_sent_to_one_that_has_gone_are_forgotten() -> None:
    unread = Unread()
    for worker_id in ("gone", "stays", "gone"):
        unread.add("m", prompt(worker_id))
    unread.forget("m", "gone")
    assert unread.size == 100
    assert [each.worker_id for each in unread.take("m")] == ["stays"]
    unread.add("m", prompt("gone"))
    unread.forget("m", "gone")
    unread.forget("unknown", "gone")
    assert (len(unread), unread.size) == (0, 0)


async def test_a_worker_that_goes_costs_what_its_own_models_do() -> None:
    cost = {}
    for models in (3, 50):
        crowd = Crowd(models)
        for number in range(models):
            flight_for(crowd, f"m{number}")
        cost[models] = steps(lambda crowd=crowd: crowd.registry.forget("w1"))  # type: ignore[misc]
        crowd.close()
    assert abs(cost[50] - cost[3]) < 20


async def test_an_adapter_that_was_unloaded_has_nothing_cached() -> None:
    crowd = Crowd(1)
    for worker_id, port in (("a", 901), ("b", 902)):
        crowd.registry.upsert(beat(worker_id, "base", port, ("lora",)), now=0)
    for _ in range(2):
        flight_for(crowd, "lora")
    assert sum(each["cached_bytes"] for each in crowd.plane.router.decisions.last("lora")[0]["candidates"]) > 0
    for adapters in ((), ("lora",)):
        for worker_id, port in (("a", 901), ("b", 902)):
            crowd.registry.upsert(beat(worker_id, "base", port, adapters), now=0)
    flight_for(crowd, "lora")
    assert [each["cached_bytes"] for each in crowd.plane.router.decisions.last("lora")[0]["candidates"]] == [0, 0]
    crowd.close()
