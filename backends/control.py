"""Drain, sleep and wake on request: here their order is kept, whatever order they are asked for in."""

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, Protocol

from backends.inner import Gist, NoAnswer, means_the_same
from backends.status import WorkerStatus
from config.states import WorkerState
from utils.errors import BadRequest, Conflict, IChatError, InternalError
from utils.logger import EventLogger

STEP_LIMIT_S: Final = 600.0
"""How long an engine may take to give its memory back, or to take it again with all weights read from disk."""
LEVELS: Final = (1, 2)
"""1: the weights wait in main memory; 2: they are read from disk again. The KV cache is gone at both."""

AWAKE: Final = (WorkerState.READY, WorkerState.DRAINING)
QUIET: Final = (WorkerState.SLEEPING, WorkerState.DRAINING)

logger = EventLogger("control")


class Sleeper(Protocol):
    """An engine that may sleep. Both are called only when they are in order, and nothing runs."""

    @abstractmethod
    def check_can_sleep(self) -> None:
        """Raises Conflict where the engine was not started for that."""

    async def put_to_sleep(self, level: int) -> None:
        """Gives the memory back."""

    async def wake_engine(self, level: int) -> None:
        """Takes it again. ``level``: at which it went to sleep."""

    async def canary(self) -> Gist | None:
        """The gist of a small request's answer, always the same; None where the engine has no such request."""

    def running(self) -> int:
        """Requests within the engine."""

    def give_up(self, error: IChatError) -> None:
        """The engine is not to be trusted any more: the worker fails, and is started again."""


class LifeControl:
    """One step at a time; a second one meanwhile is refused. A caller that goes away stops nothing.

    ``lock`` is held by whatever changes the engine: nothing else may, meanwhile.
    """

    def __init__(
        self,
        engine: Sleeper,
        status: WorkerStatus,
        wait_idle: Callable[[], Awaitable[None]],
        drain_timeout_s: float,
        lock: asyncio.Lock,
    ) -> None:
        self._engine = engine
        self._status = status
        self._wait_idle = wait_idle
        self._drain_timeout_s = drain_timeout_s
        self._lock = lock
        self._has_ended = False
        self._level = 0
        self._known: Gist | None = None

    def end(self) -> None:
        """The worker stops: no step begins any more, and one that runs does not change its state."""
        self._has_ended = True

    async def drain(self) -> None:
        """Take nothing new; what is in flight goes on. ``wake`` takes it back. Raises Conflict."""
        if self._status.state is not WorkerState.DRAINING:
            self._require_free()
            self._require_state("drain", WorkerState.READY, WorkerState.UNHEALTHY)
            self._status.set(WorkerState.DRAINING, "asked to")

    async def sleep(self, level: int) -> None:
        """Drain, then give the engine's memory back.

        Raises BadRequest for another level, Conflict where it cannot be done now, InternalError where the engine
        failed.
        """
        if level not in LEVELS:
            raise BadRequest(f"level {level}: the levels of sleep are {' and '.join(map(str, LEVELS))}", param="level")
        if self._status.state is WorkerState.SLEEPING and level == self._level:
            return
        await self._alone("sleep", AWAKE, lambda: self._sleep(level))

    async def wake(self) -> None:
        """Ready again, from sleep or from a drain. Raises Conflict where neither is, InternalError where it failed."""
        if self._status.state is WorkerState.READY:
            return
        await self._alone("wake", QUIET, self._wake)

    def _require_free(self) -> None:
        if self._lock.locked():
            raise Conflict("the worker is busy with another step: try again when it has ended")

    def _require_state(self, step: str, *states: WorkerState) -> None:
        state = self._status.state
        if self._has_ended:
            raise Conflict(f"cannot {step} a worker that stops")
        if state not in states:
            raise Conflict(f"cannot {step} a worker that is {state}: it must be {' or '.join(states)}")

    async def _alone(
        self, step: str, states: Sequence[WorkerState], work: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        self._require_free()
        await self._lock.acquire()
        try:
            self._require_state(step, *states)
            task = asyncio.ensure_future(work())
        except BaseException:
            self._lock.release()
            raise
        task.add_done_callback(self._end_step)
        await asyncio.shield(task)

    def _end_step(self, task: "asyncio.Future[None]") -> None:
        self._lock.release()
        if not task.cancelled():
            task.exception()  # whoever asked may have gone: it is in the log, or was answered

    async def _sleep(self, level: int) -> None:
        self._engine.check_can_sleep()
        before, reason = self._status.state, self._status.reason
        self._become(WorkerState.DRAINING, "going to sleep")
        try:
            await self._become_idle()
            async with asyncio.timeout(STEP_LIMIT_S):
                self._known = await self._engine.canary()
                await self._engine.put_to_sleep(level)
        except Conflict:
            self._become(before, reason)
            raise
        except Exception as error:
            raise self._fail("go to sleep", error) from error
        self._level = level
        self._become(WorkerState.SLEEPING, f"level {level}")

    async def _become_idle(self) -> None:
        """Nothing at the door, nor in the engine, which would not survive it. Raises Conflict."""
        try:
            async with asyncio.timeout(self._drain_timeout_s):
                await self._wait_idle()
                while self._engine.running():  # noqa: ASYNC110 - engines tell when they are asked, no sooner
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise Conflict(
                f"the worker is still answering after {self._drain_timeout_s:g} s (--drain-timeout): "
                "it stays awake, try again later"
            ) from None

    async def _wake(self) -> None:
        if self._status.state is WorkerState.DRAINING:
            self._become(WorkerState.READY)
            return
        try:
            async with asyncio.timeout(STEP_LIMIT_S):
                await self._engine.wake_engine(self._level)
                self._compare(await self._engine.canary())
        except Exception as error:
            raise self._fail("wake up", error) from error
        self._become(WorkerState.READY)

    def _become(self, state: WorkerState, reason: str = "") -> None:
        if not self._has_ended:
            self._status.set(state, reason)

    def _compare(self, found: Gist | None) -> None:
        """Raises NoAnswer for an engine that does not say what it said before it slept."""
        if self._known is not None and (found is None or not means_the_same(self._known, found)):
            logger.error("canary_died", before=str(self._known)[:200], after=str(found)[:200])
            raise NoAnswer("it answers otherwise than before it slept")

    def _fail(self, step: str, error: Exception) -> InternalError:
        """The worker has failed; the error for whoever asked. One that ends is not to be blamed for it."""
        took = f"took more than {STEP_LIMIT_S:g} s" if isinstance(error, TimeoutError) else ""
        why = f"the engine did not {step} in order: {took or str(error) or type(error).__name__}"
        if not self._has_ended:
            self._engine.give_up(NoAnswer(why))
        return InternalError(f"{why}: the worker ends, and is started again if a gateway manages it")
