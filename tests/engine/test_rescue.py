"""vLLM replicas that are killed under load, and what the clients of a real gateway see of it.

On float32, where the demo model's greedy answers are the same whichever other requests the engine computes with them.
"""

import asyncio
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.engine.crowd import Body, Crowd, Told
from tests.engine.support import MODEL_NAME, START_TIMEOUT_S
from tests.support import GatewayClient, chat_body, free_port, gateway, wait_until

pytestmark = pytest.mark.engine

THEMES = (
    "the sea", "a red house", "bread", "the moon", "winter", "an old bridge", "music", "a small dog", "trains",
    "the desert", "gold", "a lost letter", "the wind", "a garden", "salt", "the king's hat", "rain", "a slow clock",
    "apples", "the night sky",
)  # fmt: skip
TOKENS = 64
BEGUN = 5
"""Events of a stream that is well under way."""
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
NUMBERS = {"type": "array", "items": {"type": "integer"}, "minItems": 100}
TOOLS: Body = {"tools": [TOOL]}
SCHEMA: Body = {"response_format": {"type": "json_schema", "json_schema": {"name": "numbers", "schema": NUMBERS}}}

Kill = Callable[[int], None]
"""Of the worker with this process id."""


class Front:
    """A gateway with two replicas, which it starts again when they die."""

    def __init__(self, client: GatewayClient) -> None:
        self.client = client
        self.crowd = Crowd(client.url)

    def wait_ready(self) -> None:
        wait_until(lambda: self.states() == ["healthy", "healthy"], "both replicas ready", START_TIMEOUT_S)

    def states(self) -> list[str]:
        return [worker["status"] for worker in self.client.workers()]

    def in_flight(self) -> int:
        return sum(worker["in_flight"] for worker in self.client.workers())

    def busiest(self) -> str:
        return str(max(self.client.workers(), key=lambda worker: worker["in_flight"])["worker_id"])

    def pid(self, worker_id: str) -> int:
        return next(int(worker["pid"]) for worker in self.client.workers() if worker["worker_id"] == worker_id)

    def gone_on(self) -> float:
        """Streams that broke and went on elsewhere, so far."""
        metrics = self.client.http.get("/metrics").text
        found = re.search(r"^ichat_gateway_streams_gone_on_total\{.*\} (\S+)$", metrics, re.MULTILINE)
        return float(found[1]) if found else 0.0


def replica(model: Path) -> dict[str, Any]:
    return {
        "model_name": MODEL_NAME, "model_path": str(model), "backend": "vllm",
        "port": free_port(), "heartbeat_interval": 1, "dtype": "float32", "max_model_len": 2048, "max_num_seqs": 32,
        "env": {"OMP_NUM_THREADS": 1, "HF_HUB_OFFLINE": 1},
        "backend_args": {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"},
    }  # fmt: skip


@pytest.fixture(scope="module")
def gateway_of_two(
    tmp_path_factory: pytest.TempPathFactory, vllm_installed: None, model_folder: Path
) -> Iterator[Front]:
    workers = [replica(model_folder) for _ in range(2)]
    with gateway(tmp_path_factory.mktemp("rescue"), managed_workers=workers) as (_, client):
        yield Front(client)


@pytest.fixture
def front(gateway_of_two: Front) -> Front:
    """With both replicas ready, also if the test before has killed one."""
    gateway_of_two.wait_ready()
    return gateway_of_two


@pytest.fixture(scope="module")
def unbroken(gateway_of_two: Front) -> list[Told]:
    """The answers to all themes while nothing is wrong."""
    gateway_of_two.wait_ready()
    told = asyncio.run(gateway_of_two.crowd.hold(stories()))
    for each in told:
        assert_whole(each)
    return told


def story(number: int, **more: Any) -> Body:
    """Half of the streams ask for their usage."""
    options = {"stream": True, "stream_options": {"include_usage": number % 2 == 0}, "temperature": 0}
    asked = f"Tell me a short story about {THEMES[number]}."
    return chat_body(MODEL_NAME, asked, **{**options, "max_tokens": TOKENS, "ignore_eos": True, **more})


def stories() -> list[Body]:
    return [story(number) for number in range(len(THEMES))]


def unstreamed(body: Body) -> Body:
    return {name: value for name, value in body.items() if not name.startswith("stream")}


def kill_all(pid: int) -> None:
    """The whole process group: serve.py and its engine."""
    os.killpg(pid, signal.SIGKILL)


def kill_engine(pid: int) -> None:
    """The process that computes; serve.py lives on for a moment, and ends its streams."""
    children = psutil.Process(pid).children(recursive=True)
    next(child for child in children if "EngineCore" in child.name()).kill()


class Victim:
    """The replica that has most of the requests when it is killed."""

    def __init__(self, front: Front, kill: Kill) -> None:
        self._front = front
        self._kill = kill
        self.worker = ""

    def die(self) -> None:
        self.worker = self._front.busiest()
        self._kill(self._front.pid(self.worker))


def streams_have_begun(told: Sequence[Told]) -> bool:
    """Those of all themes, and what was asked before."""
    return sum(len(each.events) >= BEGUN for each in told) >= len(THEMES)


def assert_whole(told: Told) -> None:
    """And of one piece, as far as its client can see."""
    assert told.status == 200, told.events
    assert told.headers["x-request-id"] == told.name
    assert told.finish_reasons == ["length"], told.events[-3:]
    assert told.done == ("event-stream" in told.headers["content-type"])
    assert len(told.heads) == 1


def assert_same(told: Sequence[Told], unbroken: Sequence[Told]) -> None:
    assert [each.text for each in told] == [each.text for each in unbroken]


def test_streams_of_a_killed_replica_go_on_at_the_other(front: Front, unbroken: list[Told]) -> None:
    victim = Victim(front, kill_all)
    before = front.gone_on()
    bound = [story(number, **more) for number, more in enumerate((TOOLS, TOOLS, SCHEMA, SCHEMA))]
    told = asyncio.run(
        front.crowd.hold([*bound, *stories()], first=len(bound), when=streams_have_begun, then=victim.die),
    )
    free = told[len(bound) :]
    for each in free:
        assert_whole(each)
    assert_same(free, unbroken)
    assert [each.usage for each in free] == [each.usage for each in unbroken]
    assert front.gone_on() - before == sum(each.worker == victim.worker for each in free) > 1
    for each, word in zip(told, ("tools", "tools", "response_format", "response_format"), strict=False):
        assert (word in each.error.get("message", "")) == (each.worker == victim.worker)


def test_answers_of_a_killed_engine_come_from_the_other(front: Front, unbroken: list[Told]) -> None:
    """vLLM ends streams by an error event and ``[DONE]``, and other answers by a 500."""
    victim = Victim(front, kill_engine)
    before = front.gone_on()
    bodies = [*stories(), *map(unstreamed, stories()[:4])]
    told = asyncio.run(front.crowd.hold(bodies, when=streams_have_begun, then=victim.die))
    for each in told:
        assert_whole(each)
    assert_same(told, [*unbroken, *unbroken[:4]])
    streams = told[: len(unbroken)]
    assert front.gone_on() - before == sum(each.worker == victim.worker for each in streams) > 1


def test_no_request_fails_that_was_not_answered_yet(front: Front, unbroken: list[Told]) -> None:
    victim = Victim(front, kill_all)
    bodies = [body if number % 2 else unstreamed(body) for number, body in enumerate(stories())]
    told = asyncio.run(
        front.crowd.hold(bodies, when=lambda _: front.in_flight() == len(bodies), then=victim.die),
    )
    for each in told:
        assert_whole(each)
    assert_same(told, unbroken)
    waited = [each for each in told if each.headers["x-ichat-attempts"] == "2"]
    assert waited
    assert victim.worker not in {each.worker for each in waited}
