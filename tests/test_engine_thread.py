"""The thread in which engines are started: one, and for the whole life of the process."""

import asyncio
import threading

import pytest

from backends.engine_thread import EngineThread

pytestmark = pytest.mark.anyio
LIMIT_S = 10


async def test_all_jobs_run_in_the_same_thread_which_keeps_no_process_alive() -> None:
    thread = EngineThread("engine")
    first, second = await thread.run(threading.current_thread), await thread.run(threading.current_thread)
    assert first is second
    assert first.daemon
    assert first is not threading.current_thread()


async def test_the_loop_goes_on_meanwhile() -> None:
    thread, goes_on = EngineThread("engine"), threading.Event()
    job = asyncio.create_task(thread.run(goes_on.wait, LIMIT_S))
    await asyncio.sleep(0)
    assert thread.is_busy
    goes_on.set()
    assert await job is True
    assert not thread.is_busy


async def test_a_job_that_raises_raises_for_its_caller_and_the_thread_lives_on() -> None:
    thread = EngineThread("engine")
    with pytest.raises(ValueError, match="zero"):
        await thread.run(int, "zero")
    assert await thread.run(int, "1") == 1


async def test_a_job_that_nobody_waits_for_still_counts_as_running() -> None:
    thread, begun, ends = EngineThread("engine"), threading.Event(), threading.Event()

    def job() -> None:
        begun.set()
        ends.wait(LIMIT_S)

    waiting = asyncio.create_task(thread.run(job))
    assert await asyncio.to_thread(begun.wait, LIMIT_S)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert thread.is_busy
    ends.set()
    assert await thread.run(int) == 0
    assert not thread.is_busy


async def test_a_job_that_was_cancelled_before_its_turn_never_runs() -> None:
    thread, begun, ends = EngineThread("engine"), threading.Event(), threading.Event()
    ran: list[int] = []

    def job() -> None:
        begun.set()
        ends.wait(LIMIT_S)

    first = asyncio.create_task(thread.run(job))
    assert await asyncio.to_thread(begun.wait, LIMIT_S)
    second = asyncio.create_task(thread.run(ran.append, 1))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    ends.set()
    await first
    await thread.run(int)
    assert ran == []
