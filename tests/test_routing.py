"""The configured policy, seen from a client."""

from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest

from config.settings import ModelRouting, PolicyName, RoutingSettings
from tests.relay_double import MODEL, door
from tests.scripted import OK, answering, scripted

pytestmark = pytest.mark.anyio


async def chosen(routing: RoutingSettings, *requests: dict[str, Any]) -> list[str]:
    """Which of three idle workers each request went to, one after the other."""
    async with AsyncExitStack() as stack:
        gate = await stack.enter_async_context(door(routing))
        for worker_id in ("w1", "w2", "w3"):
            _, address = await stack.enter_async_context(scripted(answering(*[OK] * 50)))
            gate.add(worker_id, address)
        answers = []
        for request in requests:
            headers = request.get("headers", {})
            body = {"model": MODEL, "messages": [], **{key: request[key] for key in request if key != "headers"}}
            answers.append(await gate.http.post("/v1/chat/completions", json=body, headers=headers))
        return [answer.headers["x-ichat-worker"] for answer in answers]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"headers": {"x-ichat-session": "alice"}}, {"headers": {"x-ichat-session": "bob"}}),
        ({"user": "alice"}, {"user": "bob"}),
        ({"prompt_cache_key": "alice"}, {"prompt_cache_key": "bob"}),
        ({"user": {"odd": [1]}}, {"user": 7}),
    ],
)
async def test_a_session_stays_at_its_worker(one: dict[str, Any], other: dict[str, Any]) -> None:
    routing = RoutingSettings(policy="session")
    workers = await chosen(routing, *[one, other] * 5)
    assert len(set(workers[::2])) == 1
    assert len(set(workers[1::2])) == 1


async def test_the_header_stands_above_the_body() -> None:
    routing = RoutingSettings(policy="session")
    sessions = [{"headers": {"x-ichat-session": "alice"}, "user": str(number)} for number in range(8)]
    assert len(set(await chosen(routing, *sessions))) == 1


@pytest.mark.parametrize("nobody", [{}, {"user": None}, {"user": ""}])
async def test_without_a_session_all_take_part(nobody: dict[str, Any]) -> None:
    assert len(set(await chosen(RoutingSettings(policy="session"), *[nobody] * 30))) == 3


async def test_a_model_may_have_a_policy_of_its_own() -> None:
    routing = RoutingSettings(policy="random", models={MODEL: ModelRouting(policy="round_robin")})
    assert Counter(await chosen(routing, *[{}] * 9)) == {"w1": 3, "w2": 3, "w3": 3}


@pytest.mark.parametrize("policy", ["least_load", "power_of_two", "random"])
async def test_each_policy_uses_all_workers(policy: PolicyName) -> None:
    assert len(set(await chosen(RoutingSettings(policy=policy), *[{}] * 30))) == 3
