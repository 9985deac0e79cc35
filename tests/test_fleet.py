"""Worker processes that do not do what they should; what real ones do, tests/test_programs.py shows."""

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from config.settings import ManagedWorker
from config.states import WorkerState
from fleet.fleet import Fleet, FleetSettings
from monitor.registry import WorkerRegistry
from tests.doubles import logged
from tests.support import free_port, is_running

pytestmark = pytest.mark.anyio

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(60)
"""
LIMIT_S = 10.0
"""A test that waits longer has found a hang."""


@asynccontextmanager
async def fleet_of(folder: Path, program: str) -> AsyncIterator[tuple[WorkerRegistry, str, Path]]:
    """One managed worker, which is this program: its id, and the file that it writes to."""
    (folder / "serve.py").write_text(program)
    settings = FleetSettings(
        folder / "serve.py", {"": sys.executable}, "http://127.0.0.1:9", folder, 0.1, 1.0,
        watch_interval_s=0.02, hang_limit_s=0.2,
    )  # fmt: skip
    worker = ManagedWorker(model_name="m", model_path="m", backend="fake", port=free_port())
    registry = WorkerRegistry()
    fleet = Fleet([worker], settings, registry, {}, random.Random(1))
    fleet.start()
    try:
        yield registry, worker.id, folder / f"{worker.id}.log"
    finally:
        fleet.is_closing = True
        await fleet.stop(0.1)


def has_said(log: Path, word: str) -> bool:
    return log.exists() and word in log.read_text()


async def is_up(log: Path) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not has_said(log, "up"):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("state", [WorkerState.UNHEALTHY, WorkerState.FAILED, WorkerState.STOPPING])
async def test_a_worker_that_is_of_no_use_and_does_not_end_is_killed(tmp_path: Path, state: WorkerState) -> None:
    with logged() as events:
        async with fleet_of(tmp_path, STUBBORN) as (registry, worker_id, log):
            await is_up(log)
            registry.judge(worker_id, state, "it says so")
            async with asyncio.timeout(LIMIT_S):
                while not events.named("worker_restart_in"):
                    await asyncio.sleep(0.01)
            (hung,) = events.named("worker_hangs")
            values = hung.__dict__["values"]
            assert values["why"] == f"{state} for 0.2 s"
            assert not is_running(values["pid"])


@pytest.mark.parametrize("state", [WorkerState.READY, WorkerState.SLEEPING, WorkerState.LOADING])
async def test_a_worker_that_may_be_as_it_is_lives(tmp_path: Path, state: WorkerState) -> None:
    with logged() as events:
        async with fleet_of(tmp_path, STUBBORN) as (registry, worker_id, log):
            await is_up(log)
            registry.judge(worker_id, WorkerState.UNHEALTHY, "for a moment")
            await asyncio.sleep(0.1)
            registry.judge(worker_id, state, "")
            await asyncio.sleep(0.4)  # twice the limit
            assert not events.named("worker_hangs")


async def test_a_worker_that_ignores_its_end_is_killed_with_the_gateway(tmp_path: Path) -> None:
    with logged() as events:
        async with fleet_of(tmp_path, STUBBORN) as (_, _, log):
            await is_up(log)
        (spawned,) = events.named("worker_spawned")
        assert not is_running(spawned.__dict__["values"]["pid"])
