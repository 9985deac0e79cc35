"""A worker's process: started apart, ended whole, found again. The children here are real."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet.process import MAX_LOG_BYTES, TAIL_BYTES, WorkerProcess, find_managed_process

LIMIT_S = 20.0
VARIABLE = "ICHAT_TEST_WORKER_ID"
WAIT_FOR_EVER = "import signal\nwhile True: signal.pause()\n"


class Children:
    """Starts processes in a folder, and ends them all after the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "logs" / "worker.log"
        self.started: list[WorkerProcess] = []

    def start(self, code: str, *arguments: str, **env: str) -> WorkerProcess:
        argv = [sys.executable, "-S", "-c", code, *arguments]
        process = WorkerProcess.start(argv, env, cwd=self.folder, log_path=self.log)
        self.started.append(process)
        return process

    def fifo(self, name: str) -> Path:
        path = self.folder / name
        os.mkfifo(path)
        return path


@pytest.fixture
async def children(tmp_path: Path) -> AsyncIterator[Children]:
    children = Children(tmp_path)
    yield children
    for process in children.started:
        process.kill()
        await process.wait()


async def read(fifo: Path) -> str:
    """All that is written into it until its last writer closes it or dies."""
    try:
        async with asyncio.timeout(LIMIT_S):
            return await asyncio.to_thread(fifo.read_text)
    finally:
        with contextlib.suppress(OSError):  # a reader that still waits is let go
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))


async def end_of(process: WorkerProcess) -> int | None:
    async with asyncio.timeout(LIMIT_S):
        return await process.wait()


def says(fifo: Path, word: str = "ready") -> str:
    return f"open({str(fifo)!r}, 'w').write({word!r})\n"


class Grandchild:
    """A process below the worker's. ``code`` starts it there; ``end`` is done when it has died, however."""

    def __init__(self, children: Children) -> None:
        alive, self._ready = children.fifo("alive"), children.fifo("grandchild-ready")
        own = f"held_open = open({str(alive)!r}, 'w')\n{says(self._ready)}{WAIT_FOR_EVER}"
        self.code = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-S', '-c', {own!r}])\n"
        self.end = asyncio.ensure_future(read(alive))

    async def wait_until_it_lives(self) -> None:
        assert await read(self._ready) == "ready"
        assert not self.end.done()


# -- start ---------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_process_has_its_arguments_environment_folder_and_log(children: Children) -> None:
    code = "import os, sys\nprint(sys.argv[1:], os.environ, os.getcwd())\nsys.stderr.write('to stderr')\nsys.exit(3)"
    process = children.start(code, "$(id)", "two words", GREETING="hello")
    assert await end_of(process) == 3
    assert process.exited
    said = "\n".join(process.last_lines())
    assert "['$(id)', 'two words']" in said
    assert "'GREETING': 'hello'" in said
    assert "PATH" not in said
    assert str(children.folder) in said
    assert "to stderr" in said


@pytest.mark.anyio
async def test_a_process_leads_a_session_of_its_own(children: Children) -> None:
    process = children.start(WAIT_FOR_EVER)
    assert not process.exited
    assert os.getsid(process.pid) == process.pid


@pytest.mark.anyio
async def test_a_program_that_is_not_there_is_an_oserror(children: Children) -> None:
    with pytest.raises(OSError, match="no-such-python"):
        WorkerProcess.start(["/no-such-python"], {}, cwd=children.folder, log_path=children.log)


@pytest.mark.anyio
async def test_the_log_of_the_life_before_is_kept(children: Children) -> None:
    for word in ("first", "second"):
        await end_of(children.start(f"print({word!r})"))
    assert children.log.read_text() == "second\n"
    assert children.log.with_name("worker.previous.log").read_text() == "first\n"


# -- the end -------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_process_that_is_killed_ends_with_the_signals_number(children: Children) -> None:
    process = children.start(WAIT_FOR_EVER)
    os.kill(process.pid, signal.SIGSEGV)
    assert await end_of(process) == -signal.SIGSEGV


@pytest.mark.anyio
async def test_stop_lets_a_process_end_in_its_own_way(children: Children) -> None:
    ready, bye = children.fifo("ready"), children.fifo("bye")
    on_term = f"def stop(*_):\n    {says(bye, 'bye')}    raise SystemExit(7)\n"
    code = f"import signal\n{on_term}signal.signal(signal.SIGTERM, stop)\n{says(ready)}{WAIT_FOR_EVER}"
    process = children.start(code)
    assert await read(ready) == "ready"
    _, said = await asyncio.gather(process.stop(LIMIT_S), read(bye))
    assert said == "bye"
    assert await end_of(process) == 7


@pytest.mark.anyio
async def test_stop_does_not_wait_for_ever(children: Children) -> None:
    ready = children.fifo("ready")
    process = children.start(
        f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{says(ready)}{WAIT_FOR_EVER}"
    )
    await read(ready)
    await process.stop(0.05)
    assert await end_of(process) == -signal.SIGKILL


@pytest.mark.anyio
async def test_stop_ends_what_a_process_leaves_behind(children: Children) -> None:
    grandchild = Grandchild(children)
    process = children.start(grandchild.code + WAIT_FOR_EVER)
    await grandchild.wait_until_it_lives()
    await process.stop(LIMIT_S)
    assert await grandchild.end == ""


@pytest.mark.anyio
async def test_kill_ends_a_process_and_all_below_it(children: Children) -> None:
    grandchild = Grandchild(children)
    process = children.start(grandchild.code + WAIT_FOR_EVER)
    await grandchild.wait_until_it_lives()
    process.kill()
    assert await grandchild.end == ""
    assert await end_of(process) == -signal.SIGKILL


@pytest.mark.anyio
async def test_what_a_dead_process_left_behind_can_still_be_killed(children: Children) -> None:
    grandchild = Grandchild(children)
    process = children.start(grandchild.code)
    assert await end_of(process) == 0
    await grandchild.wait_until_it_lives()
    process.kill()
    assert await grandchild.end == ""


@pytest.mark.anyio
async def test_stopping_a_process_that_has_ended_is_no_trouble(children: Children) -> None:
    process = children.start("pass")
    await end_of(process)
    await process.stop(LIMIT_S)
    process.kill()
    assert await end_of(process) == 0


# -- a process of a gateway before this one ------------------------------------------------------------------------


@pytest.mark.anyio
async def test_an_adopted_process_is_watched_and_stopped_like_an_own_one(children: Children) -> None:
    spawned = children.start(WAIT_FOR_EVER)
    adopted = WorkerProcess.adopt(spawned.pid, log_path=children.log)
    assert not adopted.exited
    await adopted.stop(LIMIT_S)
    assert adopted.exited
    assert await end_of(adopted) is None
    assert await end_of(spawned) == -signal.SIGTERM


@pytest.mark.anyio
async def test_a_process_that_is_no_more_cannot_be_adopted(children: Children) -> None:
    process = children.start("pass")
    await end_of(process)
    with pytest.raises(ProcessLookupError):
        WorkerProcess.adopt(process.pid, log_path=children.log)


@pytest.mark.anyio
async def test_a_worker_is_found_by_its_id_and_its_children_are_not_taken_for_it(children: Children) -> None:
    grandchild = Grandchild(children)
    process = children.start(grandchild.code + WAIT_FOR_EVER, **{VARIABLE: str(children.folder)})
    await grandchild.wait_until_it_lives()
    assert find_managed_process(str(children.folder), VARIABLE) == process.pid
    assert find_managed_process("another", VARIABLE) is None
    process.kill()
    await grandchild.end


# -- the log -------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_last_lines_are_the_last_also_of_a_long_log(children: Children) -> None:
    process = children.start("for i in range(5000): print(f'line {i}')")
    await end_of(process)
    assert process.log_path.stat().st_size > TAIL_BYTES
    assert process.last_lines() == [f"line {i}" for i in range(4985, 5000)]
    assert process.last_lines(1) == ["line 4999"]


@pytest.mark.anyio
async def test_a_log_that_is_gone_has_no_last_lines(children: Children) -> None:
    process = children.start("print('x')")
    await end_of(process)
    process.log_path.unlink()
    assert process.last_lines() == []
    process.trim_log()


@pytest.mark.anyio
@pytest.mark.parametrize(("size", "left"), [(MAX_LOG_BYTES, MAX_LOG_BYTES), (MAX_LOG_BYTES + 1, 0)])
async def test_a_log_is_kept_from_filling_the_disk(children: Children, size: int, left: int) -> None:
    process = children.start("pass")
    await end_of(process)
    os.truncate(process.log_path, size)
    process.trim_log()
    assert process.log_path.stat().st_size == left
