"""Child processes: started, waited for, and stopped on every way out."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 10.0
LAST_WORDS: Final = 10
"""Lines of a child's log that an error shows."""


class BenchError(Exception):
    """The bench cannot go on. ``str()`` says why."""


@contextlib.contextmanager
def child(
    argv: Sequence[str | Path], log: Path | None = None, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, so that Ctrl-C reaches only us; we stop it and all that it started.

    With ``log`` both its outputs go there, else its standard output is ours to read. Raises BenchError.
    """
    with contextlib.ExitStack() as stack:
        written = stack.enter_context(log.open("w")) if log else None
        try:
            process = subprocess.Popen(
                [str(word) for word in argv], cwd=ROOT, text=True, start_new_session=True, stdin=subprocess.PIPE,
                stdout=written or subprocess.PIPE, stderr=written, env={**os.environ, **(env or {})},
            )  # fmt: skip
        except OSError as error:
            raise BenchError(f"{argv[0]} does not start: {error}") from error
        with process:
            try:
                yield process
            finally:
                stop(process)


def python(*words: str | Path) -> list[str]:
    """The command line of a program of ours."""
    return [sys.executable, *map(str, words)]


def stop(process: subprocess.Popen[str]) -> None:
    """Asks the process to end, then kills what is left of its group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def read_line(process: subprocess.Popen[str], limit_s: float, what: str) -> str:
    """The next line that the process prints. Raises BenchError."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], limit_s)
    line = process.stdout.readline().strip() if ready else ""
    if not line:
        raise BenchError(f"{what} {'ended' if ready else f'said nothing for {limit_s:g} s'}")
    return line


@contextlib.contextmanager
def last_words(log: Path, what: str) -> Iterator[None]:
    """Adds the end of a child's log to a BenchError that is raised within."""
    try:
        yield
    except BenchError as error:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_WORDS:]
        raise BenchError("\n".join([str(error), f"{what}'s last words:", *tail])) from error


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
