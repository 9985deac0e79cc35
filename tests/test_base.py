"""The life of an engine inside a worker, whatever the engine."""

import asyncio
import subprocess
import sys
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import EngineDied, Progress, ProgressWatch
from backends.status import EngineFacts
from config.states import WorkerState
from tests.doubles import JUMPING, PATIENT, logged
from tests.engine_double import Engine
from utils.common import bind_socket, port_is_free
from utils.errors import ConfigError

READY, UNHEALTHY, FAILED = WorkerState.READY, WorkerState.UNHEALTHY, WorkerState.FAILED


@pytest.fixture
def anyio_backend() -> object:
    return JUMPING


def run(engine: Engine) -> "asyncio.Task[None]":
    return asyncio.create_task(engine.run())


# -- from the open door to the end ---------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_life_in_order() -> None:
    engine = Engine()
    life = run(engine)
    await engine.reach(READY)
    assert engine.doors.engine is engine.app
    assert engine.warmed == ["/v1/completions"]
    assert engine.status.load_seconds is not None
    engine.request_stop()
    engine.request_stop()
    await life
    assert engine.states == [WorkerState.LOADING, READY, WorkerState.DRAINING, WorkerState.STOPPING]
    assert engine.stops == 1
    assert engine.doors.closed
    assert port_is_free("127.0.0.1", engine.port)


@pytest.mark.anyio
async def test_the_door_is_open_and_the_gateway_told_before_the_engine_loads() -> None:
    engine = Engine()
    engine.loaded.clear()
    opened: list[tuple[bool, WorkerState]] = []
    engine.on_open = lambda: opened.append((port_is_free("127.0.0.1", engine.port), engine.status.state))
    life = run(engine)
    await asyncio.sleep(5)
    assert engine.port
    assert opened == [(False, WorkerState.LOADING)]
    engine.loaded.set()
    await engine.reach(READY)
    engine.request_stop()
    await life


@pytest.mark.anyio
async def test_a_stop_while_the_engine_loads_is_a_stop() -> None:
    engine = Engine()
    engine.loaded.clear()
    life = run(engine)
    await asyncio.sleep(5)
    engine.request_stop()
    await life
    assert READY not in engine.states
    assert (engine.status.state, engine.stops) == (WorkerState.STOPPING, 1)


@pytest.mark.anyio
async def test_a_port_in_use_is_a_mistake_of_the_arguments() -> None:
    with bind_socket("127.0.0.1", 0) as sock:
        sock.listen()
        engine = Engine(port=sock.getsockname()[1])
        with pytest.raises(ConfigError, match=f"port {engine.port} .*--port"):
            await run(engine)
    assert engine.status.state is FAILED


@pytest.mark.anyio
@pytest.mark.parametrize("trouble", [ConfigError("no such argument"), EngineDied("out of memory"), ValueError()])
async def test_an_engine_that_does_not_start_has_failed_and_says_why(trouble: Exception) -> None:
    engine = Engine()
    engine.trouble = trouble
    with pytest.raises(type(trouble)):
        await run(engine)
    assert engine.status.state is FAILED
    assert engine.status.reason == (str(trouble) or "ValueError")
    assert engine.stops == 1
    assert port_is_free("127.0.0.1", engine.port)


# -- warm-up -------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_an_engine_whose_first_answer_is_an_error_has_failed() -> None:
    engine = Engine()
    engine.warmup_status = 500
    with pytest.raises(EngineDied, match=r"/v1/completions failed: HTTP 500: warm"):
        await run(engine)
    assert READY not in engine.states


@pytest.mark.anyio
async def test_an_engine_that_never_answers_first_has_failed_after_a_time() -> None:
    async def silent(*_: Any) -> None:
        await asyncio.Event().wait()

    engine = Engine()
    engine.app = silent
    with pytest.raises(EngineDied, match="no answer in 60 s"):
        await run(engine)


@pytest.mark.anyio
async def test_warm_up_can_be_left_out() -> None:
    engine = Engine(warmup=False)
    life = run(engine)
    await engine.reach(READY)
    assert engine.warmed == []
    engine.request_stop()
    await life


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("tasks", "paths"),
    [
        (("generate", "embed"), ["/v1/completions"]),
        (("embed",), ["/v1/embeddings"]),
        (("score",), ["/v1/rerank"]),
        (("transcription",), []),
    ],
)
async def test_warm_up_asks_for_what_the_engine_can(tasks: tuple[str, ...], paths: list[str]) -> None:
    engine = Engine()
    engine.status.learn(EngineFacts(tasks=tasks))
    requests = engine.warmup_requests()
    assert [path for path, _ in requests] == paths
    assert all(body["model"] == "m" for _, body in requests)


# -- watched -------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_an_engine_that_dies_ends_its_worker_at_once() -> None:
    engine = Engine()
    life = run(engine)
    await engine.reach(READY)
    engine.dead = True
    died = asyncio.get_running_loop().time()
    with pytest.raises(EngineDied, match="died of a test"):
        await life
    assert asyncio.get_running_loop().time() - died < 2
    assert (engine.status.state, engine.status.reason) == (FAILED, "the engine died of a test")
    assert engine.stops == 1


@pytest.mark.anyio
async def test_an_engine_that_hangs_is_said_to_be_slow_and_then_ended() -> None:
    engine = Engine(progress_timeout=100)
    life = run(engine)
    await engine.reach(READY)
    engine.now = Progress(running=1, steps=7)
    hung = asyncio.get_running_loop().time()
    await engine.reach(UNHEALTHY)
    assert asyncio.get_running_loop().time() - hung == pytest.approx(50, abs=2)
    with pytest.raises(EngineDied, match="hangs"):
        await life
    assert asyncio.get_running_loop().time() - hung == pytest.approx(100, abs=2)


@pytest.mark.anyio
async def test_a_slow_engine_that_goes_on_is_ready_again() -> None:
    engine = Engine(progress_timeout=100)
    life = run(engine)
    await engine.reach(READY)
    engine.now = Progress(running=1, steps=7)
    await engine.reach(UNHEALTHY)
    engine.now = Progress(running=1, steps=8)
    await engine.reach(READY)
    assert engine.status.reason == ""
    engine.request_stop()
    await life


# -- drained -------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_stopping_worker_finishes_what_is_in_flight() -> None:
    engine = Engine(drain_timeout=100)
    life = run(engine)
    await engine.reach(READY)
    engine.doors.idle.clear()
    engine.request_stop()
    await asyncio.sleep(50)
    assert engine.states[-1] is WorkerState.DRAINING
    assert engine.stops == 0
    engine.doors.idle.set()
    await life
    assert engine.states[-2:] == [WorkerState.DRAINING, WorkerState.STOPPING]


@pytest.mark.anyio
async def test_a_request_that_does_not_end_is_cut_at_the_limit() -> None:
    engine = Engine(drain_timeout=100)
    life = run(engine)
    await engine.reach(READY)
    engine.doors.idle.clear()
    engine.request_stop()
    asked = asyncio.get_running_loop().time()
    with logged() as events:
        await life
    assert asyncio.get_running_loop().time() - asked == pytest.approx(100, abs=3)
    assert events.named("drain_cut")


@pytest.mark.anyio
async def test_an_engine_that_dies_while_it_drains_is_not_waited_for() -> None:
    engine = Engine(drain_timeout=1000)
    life = run(engine)
    await engine.reach(READY)
    engine.doors.idle.clear()
    engine.request_stop()
    engine.dead = True
    asked = asyncio.get_running_loop().time()
    await life
    assert asyncio.get_running_loop().time() - asked < 10


@pytest.mark.anyio
async def test_a_worker_that_drains_slowly_does_not_take_requests_again() -> None:
    engine = Engine(drain_timeout=1000, progress_timeout=100)
    life = run(engine)
    await engine.reach(READY)
    engine.doors.idle.clear()
    engine.request_stop()
    for steps in range(5):
        engine.now = Progress(running=1, steps=steps)
        await asyncio.sleep(70)
    assert engine.states[-1] is WorkerState.DRAINING
    engine.doors.idle.set()
    await life
    assert engine.states.count(READY) == 1


# -- cleaned up ----------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_an_engine_that_does_not_stop_in_order_is_told_and_ended_all_the_same() -> None:
    engine = Engine()
    engine.stop_trouble = RuntimeError("stuck")
    life = run(engine)
    await engine.reach(READY)
    engine.request_stop()
    with logged() as events:
        await life
    assert "stuck" in events.named("engine_stop_failed")[0].__dict__["values"]["error"]


@pytest.mark.anyio
async def test_no_process_of_the_engine_outlives_its_worker() -> None:
    engine = Engine()
    code = "import signal\nwhile True: signal.pause()"
    child = await asyncio.to_thread(subprocess.Popen, [sys.executable, "-S", "-c", code])
    engine.trouble = EngineDied("half-way")
    with pytest.raises(EngineDied):
        await run(engine)
    assert not psutil.pid_exists(child.pid)
    child.wait(5)


# -- progress ------------------------------------------------------------------------------------------------------


@PATIENT
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.floats(0.1, 50))))
def test_only_a_time_with_requests_and_without_a_step_is_a_stall(history: list[tuple[int, int, float]]) -> None:
    watch, now, steps, since = ProgressWatch(), 0.0, 0, 0.0
    for running, more, seconds in history:
        now, steps = now + seconds, steps + more
        if not running or more or now == history[0][2]:
            since = now
        assert watch.stalled_for(Progress(running, steps), now) == pytest.approx(now - since)


# -- given up ------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_an_engine_that_is_given_up_ends_its_worker() -> None:
    engine = Engine()
    life = run(engine)
    await engine.reach(READY)
    engine.give_up(EngineDied("it answers otherwise than before it slept"))
    assert engine.status.state is FAILED
    with pytest.raises(EngineDied, match="otherwise"):
        await life
    assert engine.stops == 1
