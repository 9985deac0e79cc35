import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from scripts.setup.jobs import Job, JobFailed, run_jobs


def python(name: str, code: str, folder: Path) -> Job:
    return Job(name, (sys.executable, "-c", code), folder / f"{name}.log")


def test_jobs_run_side_by_side_and_leave_logs(tmp_path: Path) -> None:
    # Each waits for the other's file: one after the other, they would wait for ever.
    meet = "import pathlib, sys; pathlib.Path(sys.argv[0]); me, other = {0!r}, {1!r}; open(me, 'w').close()\n"
    meet += "while not pathlib.Path(other).exists(): pass\nprint('met')"
    jobs = [python("one", meet.format("a", "b"), tmp_path), python("two", meet.format("b", "a"), tmp_path)]
    seen: list[list[str]] = []
    run_jobs(jobs, lambda running: seen.append([job.name for job in running]), os.environ, tmp_path)
    assert [job.said() for job in jobs] == ["met\n", "met\n"]
    assert seen[-1] == []


def test_the_first_failure_ends_the_others(tmp_path: Path) -> None:
    endless = "import os; print(os.getpid(), flush=True)\nwhile True: pass"
    waits = "import pathlib, sys\nwhile not pathlib.Path('endless.log').read_text().endswith('\\n'): pass\nsys.exit(3)"
    jobs = [python("endless", endless, tmp_path), python("failing", waits, tmp_path)]
    with pytest.raises(JobFailed) as failed:
        run_jobs(jobs, lambda running: None, os.environ, tmp_path)
    assert (failed.value.job.name, failed.value.returncode) == ("failing", 3)
    with pytest.raises(ProcessLookupError):
        os.kill(int(jobs[0].said()), 0)


def test_an_interruption_ends_them_all(tmp_path: Path) -> None:
    job = python("endless", "import os; print(os.getpid(), flush=True)\nwhile True: pass", tmp_path)

    def interrupt(running: Sequence[Job]) -> None:
        if job.said().endswith("\n"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([job], interrupt, os.environ, tmp_path)
    with pytest.raises(ProcessLookupError):
        os.kill(int(job.said()), 0)
