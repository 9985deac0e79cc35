"""Who waits behind whom: all names of a model in one line, what different replicas serve in different ones."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.admission import AdmissionSettings
from monitor.heartbeat import Heartbeat
from monitor.registry import WorkerRegistry
from relay.admission.lines import Lines
from relay.routes import ROUTES, TASKS
from tests.doubles import PATIENT
from tests.relay_double import MODEL, Gate, door
from tests.scripted import read_request, scripted
from tests.support import chat_body

CHAT = "/v1/chat/completions"
EMBED = "/v1/embeddings"


def beat(worker_id: str, model: str = MODEL, **more: Any) -> Heartbeat:
    return Heartbeat(worker_id=worker_id, model_name=model, backend="x", host=worker_id, port=1, **more)


def registry_of(*beats: Heartbeat) -> WorkerRegistry:
    registry = WorkerRegistry()
    for each in beats:
        registry.upsert(each, 0)
    return registry


# -- which line ----------------------------------------------------------------------------------------------------


def test_an_alias_leads_to_its_model() -> None:
    registry = registry_of(beat("a", aliases=("x", "y")), beat("b", aliases=("y", "x")))
    assert [registry.own_name(name) for name in (MODEL, "x", "y", "unknown")] == [MODEL, MODEL, MODEL, "unknown"]
    assert registry.names_of(MODEL) == [MODEL, "x", "y"]


@pytest.mark.parametrize(
    "beats",
    [
        [beat("a", aliases=("x",)), beat("b")],  # of some of the replicas
        [beat("a", aliases=("x",)), beat("b", "other", aliases=("x",))],  # of two models
        [beat("a", adapters=("x",))],  # a model of its own, on the same replica
    ],
)
def test_what_is_not_the_same_is_a_name_of_its_own(beats: Sequence[Heartbeat]) -> None:
    registry = registry_of(*beats)
    assert registry.own_name("x") == "x"
    assert registry.names_of(MODEL) == [MODEL]


def test_an_alias_stays_one_while_a_replica_is_away() -> None:
    registry = registry_of(beat("a", aliases=("x",)), beat("b", aliases=("x",)))
    registry.mark_unreachable("a", "one probe failed")
    assert registry.own_name("x") == MODEL


@pytest.mark.parametrize("route", sorted(ROUTES))
def test_a_line_has_the_replicas_that_can_do_what_its_route_is_for(route: str) -> None:
    workers = {"g": ("generate",), "e": ("embed",), "t": ("transcription",), "all": ()}
    lines = Lines(registry_of(*[beat(name, tasks=tasks) for name, tasks in workers.items()]))
    asked = TASKS.get(route)
    able = {name for name, tasks in workers.items() if asked is None or not tasks or set(tasks) & set(asked)}
    assert {replica.worker_id for replica in lines.replicas(lines.line_of(MODEL, route)) or ()} == able
    assert lines.replicas(lines.line_of("unknown", route)) is None


NAMES = st.text("abc():", min_size=1, max_size=5)


@PATIENT
@given(NAMES, NAMES, st.sampled_from(sorted(ROUTES)), st.sampled_from(sorted(ROUTES)))
def test_lines_are_the_same_where_model_and_tasks_are(one: str, other: str, first: str, second: str) -> None:
    lines = Lines(WorkerRegistry())
    is_same = (one, TASKS.get(first)) == (other, TASKS.get(second))
    assert (lines.line_of(one, first) == lines.line_of(other, second)) == is_same
    assert lines.model(lines.line_of(one, first)) == one


# -- what that means -----------------------------------------------------------------------------------------------


class Worker:
    """Notes what it is asked for, and answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.may_answer = asyncio.Event()

    async def script(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            body = (await read_request(reader)).partition(b"\r\n\r\n")[2]
            self.asked.append(json.loads(body)["model"])
            await self.may_answer.wait()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")


class Asking:
    """Requests that are under way, and what they wait for."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.tasks: list[asyncio.Task[httpx.Response]] = []

    def ask(self, model: str, route: str = CHAT) -> "asyncio.Task[httpx.Response]":
        body = chat_body(model) if route == CHAT else {"model": model, "input": "x"}
        self.tasks.append(asyncio.create_task(self._gate.http.post(route, json=body)))
        return self.tasks[-1]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.002)

    async def wait_in(self, length: int, *workers: Worker) -> None:
        """Until all requests are at workers, but so many."""
        await self.until(lambda: sum(self._gate.lobby.lengths().values()) == length)
        await self.until(lambda: sum(len(worker.asked) for worker in workers) == len(self.tasks) - length)


@asynccontextmanager
async def asking(worker: Worker, admission: dict[str, Any], **beat: Any) -> AsyncIterator[tuple[Gate, Asking]]:
    settings = AdmissionSettings.model_validate(admission)
    async with scripted(worker.script) as (_, address), door(None, settings) as gate:
        gate.add("w", address, **beat)
        requests = Asking(gate)
        yield gate, requests
        worker.may_answer.set()
        await asyncio.gather(*requests.tasks)


@pytest.mark.anyio
@pytest.mark.parametrize("configured", [MODEL, "alias"])
@pytest.mark.parametrize("asked", [[MODEL, "alias"], ["alias", MODEL], ["alias", "alias"]])
async def test_a_models_capacity_holds_for_all_its_names(configured: str, asked: list[str]) -> None:
    worker = Worker()
    admission = {"capacity": 5, "models": {configured: {"capacity": 2}}}
    async with asking(worker, admission, aliases=("alias",)) as (gate, requests):
        for model in asked * 2:
            requests.ask(model)
        await requests.wait_in(2, worker)
        assert gate.router.in_flight == {"w": 2}
        assert gate.lobby.admission.lengths() == {MODEL: 2}


@pytest.mark.anyio
@pytest.mark.parametrize("configured", [MODEL, "alias"])
async def test_the_names_of_a_model_share_a_queue_and_its_length(configured: str) -> None:
    worker = Worker()
    admission = {"capacity": 1, "models": {configured: {"max_queue": 1}}}
    async with asking(worker, admission, aliases=("alias",)) as (_, requests):
        for model in (MODEL, "alias"):
            requests.ask(model)
        await requests.wait_in(1, worker)
        assert (await requests.ask(MODEL)).status_code == 429
        assert (await requests.ask("alias")).status_code == 429


@pytest.mark.anyio
@pytest.mark.parametrize("configured", [MODEL, "alias"])
async def test_the_names_of_a_model_share_its_patience(configured: str) -> None:
    worker = Worker()
    admission = {"capacity": 1, "models": {configured: {"default_timeout_s": 0.01}}}
    async with asking(worker, admission, aliases=("alias",)) as (_, requests):
        requests.ask(MODEL)
        await requests.until(lambda: worker.asked)
        late = await asyncio.gather(requests.ask("alias"), requests.ask(MODEL))
        assert [answer.json()["error"]["code"] for answer in late] == ["queue_timeout"] * 2


@pytest.mark.anyio
async def test_who_came_first_is_served_first_by_whatever_name() -> None:
    worker = Worker()
    order = [MODEL, "alias", "alias", MODEL, MODEL, "alias"]
    async with asking(worker, {"capacity": 1}, aliases=("alias",)) as (_, requests):
        for number, model in enumerate(order):
            requests.ask(model)
            await requests.wait_in(number, worker)
        worker.may_answer.set()
    assert worker.asked == order


@pytest.mark.anyio
@pytest.mark.parametrize(("own", "runs"), [({}, 1), ({"adapter": {"capacity": 3}}, 3)])
async def test_an_adapter_keeps_to_its_models_capacity_unless_it_has_its_own(own: dict[str, Any], runs: int) -> None:
    worker = Worker()
    admission = {"models": {MODEL: {"capacity": 1}, **own}}
    async with asking(worker, admission, adapters=("adapter",)) as (gate, requests):
        for _ in range(4):
            requests.ask("adapter")
        await requests.wait_in(4 - runs, worker)
        assert gate.router.in_flight == {"w": runs}


@pytest.mark.anyio
async def test_a_replica_that_cannot_do_what_is_asked_is_no_room_for_it() -> None:
    chats, embeds = Worker(), Worker()
    embeds.may_answer.set()
    async with (
        scripted(embeds.script) as (_, address),
        asking(chats, {"capacity": 1}, tasks=("generate",)) as (gate, requests),
    ):
        gate.add("embeds", address, tasks=("embed",))
        for _ in range(3):
            requests.ask(MODEL)
        await requests.wait_in(2, chats)
        gate.router.freed.update(("w", "embeds"))
        gate.lobby.call_next()
        assert gate.router.in_flight == {"w": 1}
        assert (await requests.ask(MODEL, EMBED)).headers["x-ichat-worker"] == "embeds"  # and it is in nobody's way
        assert gate.router.in_flight == {"w": 1}
        assert gate.lobby.lengths() == {MODEL: 2}


@pytest.mark.anyio
async def test_the_metrics_of_all_lines_are_their_models() -> None:
    worker = Worker()
    async with asking(worker, {"capacity": 1}) as (gate, requests):
        for route in (CHAT, CHAT, EMBED):
            requests.ask(MODEL, route)
        await requests.wait_in(2, worker)
        assert gate.lobby.admission.lengths() == {MODEL: 1, f"{MODEL} (embed)": 1}
        assert gate.lobby.lengths() == {MODEL: 2}
    assert b'ichat_gateway_queue_left_total{model="m",outcome="served"} 2.0' in gate.scrape()
