"""What a request costs where many others wait: counted steps, of the data plane without sockets."""

import asyncio
import random
from collections.abc import Callable

import pytest

from config.admission import AdmissionSettings
from config.settings import ClientKey, GatewaySettings, ServerSettings
from monitor.heartbeat import Heartbeat
from monitor.registry import WorkerRegistry
from relay.access import Access
from relay.admission.admission import MAX_SHOWN
from relay.call import Call
from relay.lobby import MAX_AT_ONCE
from relay.plane import DataPlane
from tests.steps import steps
from tests.upstream_double import Wire

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"


class Crowd:
    """Models ``m0`` and so on, each with so many workers, all of them busy."""

    def __init__(self, models: int, replicas: int = 1, **admission: float) -> None:
        settings = GatewaySettings(admission=AdmissionSettings.model_validate({"capacity": 1, **admission}))
        self.registry = WorkerRegistry()
        access = Access(ServerSettings())
        self.plane = DataPlane(self.registry, access, settings, random.Random(1), sweep_s=1000)
        for number in range(models * replicas):
            self.registry.upsert(beat(number, f"m{number // replicas}"), now=0)
        self.plane.router.in_flight.update({worker.id: 1 for worker in self.registry.workers()})

    def ask(self, model: int, key: str = "alice") -> Call:
        body = b'{"model": "m%d"}' % model
        headers = [(b"content-type", b"application/json")]
        call = Call(Wire(), lambda: None, lambda _: None, CHAT, CHAT.encode(), headers, 1000)
        relay = self.plane.relay
        relay.accept(call)
        relay._flights[call].client = ClientKey.model_construct(name=key, hash="", weight=1.0, priority=1, limits=None)
        call.add(body)
        relay.serve(call)
        return call

    def lose(self, call: Call) -> None:
        call.disconnected = True
        self.plane.relay.lose(call)

    @property
    def waiting(self) -> int:
        return sum(self.plane.lobby.lengths().values())

    def close(self) -> None:
        self.plane.relay.cut_flights()
        self.plane.upstream.shutdown()


def beat(number: int, model: str) -> Heartbeat:
    return Heartbeat(worker_id=f"w{number}", model_name=model, backend="x", host="h", port=1 + number)


def cost_with(queues: int, what: Callable[[Crowd, list[Call]], Callable[[], object]]) -> int:
    """The steps of what is done where one waits for each of so many models."""
    crowd = Crowd(queues)
    calls = [crowd.ask(model) for model in range(queues)]
    assert crowd.waiting == queues
    cost = steps(what(crowd, calls))
    crowd.close()
    return cost


def leaves(crowd: Crowd, calls: list[Call]) -> Callable[[], object]:
    return lambda: crowd.lose(calls[1])


def beats(crowd: Crowd, _: list[Call]) -> Callable[[], object]:
    return lambda: crowd.registry.upsert(beat(1, "m1"), now=1)


def frees_a_place(crowd: Crowd, _: list[Call]) -> Callable[[], object]:
    del crowd.plane.router.in_flight["w1"]
    crowd.plane.router.freed.add("w1")
    return crowd.plane.lobby.call_next


@pytest.mark.parametrize("what", [leaves, beats, frees_a_place])
async def test_what_concerns_one_model_looks_at_no_other_models_queue(
    what: Callable[[Crowd, list[Call]], Callable[[], object]],
) -> None:
    few, many = cost_with(20, what), cost_with(100, what)
    assert abs(many - few) < 20


async def test_a_place_that_is_free_again_is_for_who_waits_for_its_model() -> None:
    crowd = Crowd(3)
    for model in range(3):
        crowd.ask(model)
    frees_a_place(crowd, [])()
    assert crowd.plane.lobby.lengths() == {"m0": 1, "m2": 1}
    assert crowd.plane.in_flight == {"w0": 1, "w1": 1, "w2": 1}
    crowd.close()
    await asyncio.sleep(0)  # what was to connect is cancelled


async def test_who_joins_a_queue_does_not_look_at_all_replicas() -> None:
    cost = {}
    for replicas in (2, 100):
        crowd = Crowd(1, replicas)
        for _ in range(2):
            crowd.ask(0)
        cost[replicas] = steps(lambda crowd=crowd: crowd.ask(0))  # type: ignore[misc]
        assert crowd.waiting == 3
        crowd.close()
    # Left are two lines for each: whether it can do what is asked.
    assert cost[100] - cost[2] < 5 * 98


async def test_who_joins_a_queue_does_not_look_at_all_keys() -> None:
    cost = {}
    for keys in (2, 100):
        crowd = Crowd(1)
        crowd.plane.lobby.admission.landed("m0", 0.1)
        for number in range(keys):
            crowd.ask(0, key=f"key {number}")
        cost[keys] = steps(lambda crowd=crowd: crowd.ask(0))  # type: ignore[misc]
        assert crowd.waiting == keys + 1
        crowd.close()
    assert abs(cost[100] - cost[2]) < 20


async def test_the_names_of_all_models_are_put_together_once_a_change() -> None:
    """Each request for a wrong model is told of some of them."""
    crowd = Crowd(3)
    border = crowd.plane.relay._border
    before = border.models()
    crowd.ask(99)
    assert border.models() is before
    crowd.registry.forget("w1")
    assert (list(before), list(border.models())) == (["m0", "m1", "m2"], ["m0", "m2"])
    crowd.close()


async def test_when_the_time_of_thousands_is_over_others_have_their_turns_between() -> None:
    crowd = Crowd(1, default_timeout_s=0.001, max_queue=10 * MAX_AT_ONCE)
    for _ in range(MAX_AT_ONCE + 1):
        crowd.ask(0)
    await asyncio.sleep(0.002)
    crowd.plane.lobby._sweep()
    assert crowd.waiting == 1
    async with asyncio.timeout(5):
        while crowd.waiting:
            await asyncio.sleep(0)
    crowd.close()


async def test_the_admin_api_shows_the_first_of_many_without_a_walk_over_all() -> None:
    cost = {}
    for waiting in (MAX_SHOWN, 10 * MAX_SHOWN):
        crowd = Crowd(1)
        for _ in range(waiting):
            crowd.ask(0)
        admission = crowd.plane.lobby.admission
        cost[waiting] = steps(lambda admission=admission: admission.view(0.0))  # type: ignore[misc]
        assert len(admission.view(0.0)["m0"]["queue"]) == MAX_SHOWN
        crowd.close()
    assert cost[10 * MAX_SHOWN] - cost[MAX_SHOWN] < 20
