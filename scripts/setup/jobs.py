"""Child processes that do one step's work, side by side, each with its own log file."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1  # prctl(2)
POLL_S = 0.1
GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Job:
    """``name`` is for people; ``log`` is where the output goes, written anew."""

    name: str
    argv: tuple[str, ...]
    log: Path

    def said(self) -> str:
        with contextlib.suppress(OSError):
            return self.log.read_text(encoding="utf-8", errors="replace")
        return ""


class JobFailed(Exception):
    def __init__(self, job: Job, returncode: int) -> None:
        super().__init__(f"{job.name}: exit status {returncode}")
        self.job = job
        self.returncode = returncode


def run_jobs(
    jobs: Sequence[Job],
    tick: Callable[[Sequence[Job]], None],
    environ: Mapping[str, str],
    folder: Path,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Run all jobs at once; ``tick`` gets those that still run, several times a second.

    Raises JobFailed as soon as one fails. However this ends, no job is left running.
    """
    with contextlib.ExitStack() as stack:
        running = [(job, stack.enter_context(started(job, environ, folder))) for job in jobs]
        while running:
            for job, process in running:
                if process.poll():
                    raise JobFailed(job, process.returncode)
            running = [(job, process) for job, process in running if process.returncode is None]
            tick([job for job, _ in running])
            if running:
                pause(POLL_S)


@contextlib.contextmanager
def started(job: Job, environ: Mapping[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with job.log.open("wb") as log:
        process = subprocess.Popen(
            job.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=dict(environ),
            start_new_session=True,  # a terminal's Ctrl-C reaches us alone, and we end the whole group
            preexec_fn=die_with_parent(),  # noqa: PLW1509 - this process has no threads
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            end_group(process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
            return


def die_with_parent(signum: int = signal.SIGTERM) -> Callable[[], None]:
    """For ``preexec_fn``: the kernel sends the child this signal when we die, even of SIGKILL (prctl(2))."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def preexec() -> None:
        prctl(PR_SET_PDEATHSIG, signum)
        if os.getppid() != parent:  # it died before the kernel knew
            os.kill(os.getpid(), signum)

    return preexec
