"""Drain, sleep and wake: the order is kept, whatever is asked for and whoever goes away."""

import asyncio

import pytest

from backends.control import LifeControl, Sleeper
from backends.inner import Gist, gist_of, means_the_same, probe
from backends.status import WorkerStatus
from config.states import WorkerState
from tests.doubles import JUMPING
from utils.errors import BadRequest, Conflict, IChatError, InternalError

READY, DRAINING, SLEEPING, FAILED = (
    WorkerState.READY, WorkerState.DRAINING, WorkerState.SLEEPING, WorkerState.FAILED,
)  # fmt: skip


@pytest.fixture
def anyio_backend() -> object:
    return JUMPING


class Engine(Sleeper):
    """Dies of a wrong order, as the real ones do."""

    def __init__(self, status: WorkerStatus) -> None:
        self.status = status
        self.level = 0
        self.requests = 0
        self.can_sleep = True
        self.says: Gist | None = (" Paris",)
        self.trouble: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.lost: IChatError | None = None

    def check_can_sleep(self) -> None:
        if not self.can_sleep:
            raise Conflict("start it with --enable-sleep-mode")

    async def put_to_sleep(self, level: int) -> None:
        assert not self.requests
        assert not self.level
        await self.gate.wait()
        if self.trouble:
            raise self.trouble
        self.level = level

    async def wake_engine(self, level: int) -> None:
        assert self.level == level
        await self.gate.wait()
        if self.trouble:
            raise self.trouble
        self.level = 0

    async def canary(self) -> Gist | None:
        assert not self.level
        return self.says

    def running(self) -> int:
        return self.requests

    def give_up(self, error: IChatError) -> None:
        self.lost = error
        self.status.set(FAILED, str(error))


class Bench:
    def __init__(self) -> None:
        self.status = WorkerStatus(asyncio.get_running_loop().time)
        self.status.set(READY)
        self.engine = Engine(self.status)
        self.idle = asyncio.Event()
        self.idle.set()
        self.lock = asyncio.Lock()
        self.control = LifeControl(self.engine, self.status, self._wait_idle, 30, self.lock)

    async def _wait_idle(self) -> None:
        await self.idle.wait()

    async def do(self, step: str) -> None:
        await (self.control.sleep(1) if step == "sleep" else self.control.wake())

    async def go_to_sleep(self) -> "asyncio.Task[None]":
        """A sleep that is on its way, and waits for the engine's gate."""
        self.engine.gate.clear()
        asleep = asyncio.create_task(self.control.sleep(1))
        await asyncio.sleep(1)
        return asleep

    def stop(self) -> None:
        """The worker is asked to end."""
        self.control.end()
        self.status.set(WorkerState.STOPPING)

    @property
    def state(self) -> WorkerState:
        return self.status.state


@pytest.mark.anyio
@pytest.mark.parametrize("level", [1, 2])
async def test_asleep_and_awake_again(level: int) -> None:
    bench = Bench()
    await bench.control.sleep(level)
    assert (bench.state, bench.status.reason, bench.engine.level) == (SLEEPING, f"level {level}", level)
    await bench.control.sleep(level)  # is what it is
    await bench.control.wake()
    assert (bench.state, bench.engine.level) == (READY, 0)
    await bench.control.wake()
    assert bench.state is READY


@pytest.mark.anyio
async def test_a_drain_is_taken_back_by_waking() -> None:
    bench = Bench()
    await bench.control.drain()
    await bench.control.drain()
    assert bench.state is DRAINING
    await bench.control.wake()
    assert bench.state is READY


@pytest.mark.anyio
@pytest.mark.parametrize("level", [0, 3, -1])
async def test_there_are_two_levels(level: int) -> None:
    bench = Bench()
    with pytest.raises(BadRequest, match="1 and 2"):
        await bench.control.sleep(level)
    assert bench.state is READY


@pytest.mark.anyio
@pytest.mark.parametrize("state", [WorkerState.LOADING, WorkerState.UNHEALTHY, FAILED, WorkerState.STOPPING])
async def test_what_is_out_of_order_is_refused(state: WorkerState) -> None:
    bench = Bench()
    bench.status.state = state
    for step in (bench.control.sleep(1), bench.control.wake()):
        with pytest.raises(Conflict, match=f"a worker that is {state}"):
            await step
    assert bench.state is state


@pytest.mark.anyio
async def test_another_level_is_another_sleep() -> None:
    bench = Bench()
    await bench.control.sleep(1)
    with pytest.raises(Conflict, match="cannot sleep a worker that is sleeping"):
        await bench.control.sleep(2)
    assert bench.state is SLEEPING


@pytest.mark.anyio
async def test_it_sleeps_when_the_last_request_has_ended() -> None:
    bench = Bench()
    bench.idle.clear()
    bench.engine.requests = 1
    asleep = asyncio.create_task(bench.control.sleep(1))
    await asyncio.sleep(10)
    assert (bench.state, bench.engine.level) == (DRAINING, 0)
    bench.idle.set()
    await asyncio.sleep(10)
    assert bench.engine.level == 0  # one that the door does not know of
    bench.engine.requests = 0
    await asleep
    assert bench.state is SLEEPING


@pytest.mark.anyio
async def test_one_that_does_not_become_idle_stays_awake() -> None:
    bench = Bench()
    bench.idle.clear()
    with pytest.raises(Conflict, match="still answering after 30 s"):
        await bench.control.sleep(1)
    assert bench.state is READY


@pytest.mark.anyio
async def test_one_step_at_a_time() -> None:
    bench = Bench()
    asleep = await bench.go_to_sleep()
    for step in (bench.control.sleep(2), bench.control.wake()):
        with pytest.raises(Conflict, match="another step"):
            await step
    bench.engine.gate.set()
    await asleep
    assert bench.state is SLEEPING


@pytest.mark.anyio
async def test_two_that_come_at_once_are_not_both_done() -> None:
    bench = Bench()
    both = await asyncio.gather(bench.control.sleep(1), bench.control.sleep(2), return_exceptions=True)
    assert [type(result) for result in both] == [type(None), Conflict]
    assert (bench.state, bench.engine.level) == (SLEEPING, 1)
    both = await asyncio.gather(bench.control.wake(), bench.control.wake(), return_exceptions=True)
    assert [type(result) for result in both] == [type(None), Conflict]
    assert bench.state is READY
    assert not bench.lock.locked()


@pytest.mark.anyio
async def test_a_caller_that_goes_away_stops_nothing() -> None:
    bench = Bench()
    asleep = await bench.go_to_sleep()
    asleep.cancel()
    bench.engine.gate.set()
    await asyncio.sleep(1)
    assert bench.state is SLEEPING
    await bench.control.wake()
    assert bench.state is READY


@pytest.mark.anyio
async def test_an_engine_that_cannot_sleep_turns_nobody_away() -> None:
    bench = Bench()
    bench.engine.can_sleep = False
    states: list[WorkerState] = []
    bench.status.subscribe(lambda: states.append(bench.state))
    with pytest.raises(Conflict, match="enable-sleep-mode"):
        await bench.control.sleep(1)
    assert (bench.state, states, bench.engine.lost) == (READY, [], None)


@pytest.mark.anyio
async def test_a_drain_that_was_asked_for_outlives_a_sleep_that_could_not_be() -> None:
    bench = Bench()
    await bench.control.drain()
    bench.idle.clear()
    with pytest.raises(Conflict, match="still answering"):
        await bench.control.sleep(1)
    assert (bench.state, bench.status.reason) == (DRAINING, "asked to")


@pytest.mark.anyio
@pytest.mark.parametrize("step", ["sleep", "wake"])
async def test_an_engine_that_does_not_end_a_step_is_given_up(step: str) -> None:
    bench = Bench()
    if step == "wake":
        await bench.control.sleep(1)
    bench.engine.gate.clear()
    with pytest.raises(InternalError, match="more than 600 s"):
        await bench.do(step)
    assert bench.state is FAILED


@pytest.mark.anyio
async def test_what_else_changes_the_engine_goes_first() -> None:
    bench = Bench()
    async with bench.lock:
        with pytest.raises(Conflict, match="another step"):
            await bench.control.sleep(1)
    await bench.control.sleep(1)
    assert bench.state is SLEEPING


@pytest.mark.anyio
async def test_a_worker_that_ends_is_not_blamed_for_a_step_that_failed() -> None:
    bench = Bench()
    asleep = await bench.go_to_sleep()
    bench.stop()
    bench.engine.trouble = RuntimeError("shut down meanwhile")
    bench.engine.gate.set()
    with pytest.raises(InternalError):
        await asleep
    assert (bench.state, bench.engine.lost) == (WorkerState.STOPPING, None)


@pytest.mark.anyio
@pytest.mark.parametrize("step", ["sleep", "wake"])
async def test_an_engine_that_fails_at_it_is_given_up(step: str) -> None:
    bench = Bench()
    if step == "wake":
        await bench.control.sleep(1)
    bench.engine.trouble = RuntimeError("out of memory")
    with pytest.raises(InternalError, match="out of memory"):
        await bench.do(step)
    assert bench.state is FAILED
    assert "out of memory" in str(bench.engine.lost)


@pytest.mark.anyio
async def test_an_engine_that_says_something_else_afterwards_is_given_up() -> None:
    bench = Bench()
    await bench.control.sleep(1)
    bench.engine.says = ("!!!!!!!!",)
    with pytest.raises(InternalError, match="answers otherwise than before it slept"):
        await bench.control.wake()
    assert bench.state is FAILED


@pytest.mark.anyio
async def test_a_worker_that_ends_is_not_made_ready_again() -> None:
    bench = Bench()
    asleep = await bench.go_to_sleep()
    bench.stop()
    bench.engine.gate.set()
    await asleep
    assert bench.state is WorkerState.STOPPING
    with pytest.raises(Conflict, match="that stops"):
        await bench.control.wake()


# -- what a canary says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tasks", "answer", "same", "other"),
    [
        (("generate",), {"choices": [{"text": " Paris"}]}, {"choices": [{"text": " Paris"}], "id": "2"},
         {"choices": [{"text": " Rome"}]}),
        (("embed",), {"data": [{"embedding": [0.5, 0.1]}]}, {"data": [{"embedding": [0.501, 0.1]}]},
         {"data": [{"embedding": [0.1, 0.5]}]}),
        (("score",), {"results": [{"index": 1, "relevance_score": 0.2}, {"index": 0, "relevance_score": 0.1}]},
         {"results": [{"index": 0, "relevance_score": 0.1}, {"index": 1, "relevance_score": 0.2}]},
         {"results": [{"index": 0, "relevance_score": 0.9}]}),
    ],
)  # fmt: skip
def test_a_canary_is_known_by_its_gist(
    tasks: tuple[str, ...], answer: dict[str, object], same: dict[str, object], other: dict[str, object]
) -> None:
    assert probe("m", tasks, "hello") is not None
    assert means_the_same(gist_of(answer), gist_of(same))
    assert not means_the_same(gist_of(answer), gist_of(other))


def test_an_engine_without_such_a_request_has_no_canary() -> None:
    assert probe("m", ("transcription",), "hello") is None
