"""LoRA adapters come and go, one at a time; each is a name that can be asked for."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from backends.adapters import AdapterHost, Adapters
from backends.status import EngineFacts, WorkerStatus
from config.states import WorkerState
from utils.errors import BadRequest, Conflict, NotFound


class Host(AdapterHost):
    def __init__(self) -> None:
        self.loaded: dict[str, str] = {}
        self.refuses = False
        self.most_at_once = self._now = 0

    async def load_adapter(self, name: str, path: str) -> None:
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        await asyncio.sleep(0)
        self._now -= 1
        if self.refuses:
            raise BadRequest("rank 64 is more than --max-lora-rank 16")
        self.loaded[name] = path

    async def unload_adapter(self, name: str) -> None:
        if self.refuses:
            raise BadRequest("it is in use")
        del self.loaded[name]


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def status() -> WorkerStatus:
    status = WorkerStatus()
    status.learn(EngineFacts(adapters=("static",)))
    status.set(WorkerState.READY)
    return status


@pytest.fixture
def adapters(host: Host, status: WorkerStatus) -> Adapters:
    return Adapters(host, status, ("model", "alias"), asyncio.Lock())


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "adapter_config.json").write_text("{}")
    return str(tmp_path)


@pytest.mark.anyio
async def test_an_adapter_comes_and_goes(adapters: Adapters, host: Host, status: WorkerStatus, folder: str) -> None:
    await adapters.load("tuned", folder)
    assert (host.loaded, status.facts.adapters) == ({"tuned": folder}, ("static", "tuned"))
    await adapters.unload("tuned")
    assert (host.loaded, status.facts.adapters) == ({}, ("static",))


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["model", "alias", "static"])
async def test_a_name_that_is_taken_is_refused(adapters: Adapters, name: str, folder: str) -> None:
    with pytest.raises(Conflict, match=name):
        await adapters.load(name, folder)


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["", "two words", "x" * 300, "tab\t"])
async def test_a_name_that_cannot_be_asked_for_is_refused(adapters: Adapters, name: str, folder: str) -> None:
    with pytest.raises(BadRequest, match="without spaces"):
        await adapters.load(name, folder)


@pytest.mark.anyio
async def test_a_folder_without_an_adapter_is_refused(adapters: Adapters, host: Host, tmp_path: Path) -> None:
    for path in (str(tmp_path / "nowhere"), str(tmp_path), ""):
        with pytest.raises(BadRequest, match="there is no"):
            await adapters.load("tuned", path)
    assert host.loaded == {}


@pytest.mark.anyio
async def test_what_the_engine_refuses_is_no_name(
    adapters: Adapters, host: Host, status: WorkerStatus, folder: str
) -> None:
    host.refuses = True
    with pytest.raises(BadRequest, match="max-lora-rank"):
        await adapters.load("tuned", folder)
    assert status.facts.adapters == ("static",)


@pytest.mark.anyio
async def test_one_that_the_engine_keeps_is_still_a_name(adapters: Adapters, host: Host, status: WorkerStatus) -> None:
    host.refuses = True
    with pytest.raises(BadRequest, match="in use"):
        await adapters.unload("static")
    assert status.facts.adapters == ("static",)


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/" + "a" * 300, "/a" * 3000])
async def test_a_path_that_no_file_can_have_is_refused(adapters: Adapters, path: str) -> None:
    with pytest.raises(BadRequest, match="longer than a path can be"):
        await adapters.load("tuned", path)


@pytest.mark.anyio
async def test_one_that_is_not_there_cannot_go(adapters: Adapters) -> None:
    with pytest.raises(NotFound, match="the adapters are static"):
        await adapters.unload("tuned")


@pytest.mark.anyio
async def test_the_worker_must_be_ready(adapters: Adapters, status: WorkerStatus, folder: str) -> None:
    status.set(WorkerState.SLEEPING)
    for change in (adapters.load("tuned", folder), adapters.unload("static")):
        with pytest.raises(Conflict, match="the worker is sleeping"):
            await change


@pytest.mark.anyio
async def test_changes_come_one_after_the_other(
    adapters: Adapters, host: Host, status: WorkerStatus, folder: str
) -> None:
    await asyncio.gather(*(adapters.load(f"tuned-{number}", folder) for number in range(5)))
    assert host.most_at_once == 1
    assert replace(status.facts).adapters == ("static", *(f"tuned-{number}" for number in range(5)))
