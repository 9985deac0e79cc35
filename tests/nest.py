"""Programs of this project without the second that their imports take: forked from a process that has done them.

Dozens of tests start a gateway or a worker. Beyond its imports, such a program is as one that a shell starts: with its
own session, arguments, environment and files, its own run of the file as ``__main__``, and the interpreter's own end.
"""

import array
import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
POLL_S: Final = 0.02
MAX_REQUEST: Final = 2**17
"""Bytes; a request holds the whole environment."""
IMPORTED: Final = (
    "gateway", "config.args", "monitor.heartbeat", "worker.app", "worker.beat", "worker.gpus", "worker.metrics",
    "worker.output", "backends.fake_backend",
    "httpcore", "pydantic.v1",
)  # fmt: skip
"""What gateway.py and serve.py import, at their tops and late; and what httpx and FastAPI do at their first use."""


class Hatched:
    """A forked program, with what the tests use of ``subprocess.Popen``."""

    def __init__(self, nest: "Nest", pid: int) -> None:
        self._nest = nest
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._nest.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; of a signal, its number below zero. Raises subprocess.TimeoutExpired."""
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(POLL_S)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nest:
    """The process that forks; it ends with the process that asks it. Answers one question at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.nest", str(theirs.fileno())], cwd=ROOT, pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def start(self, argv: list[str], output: int, env: dict[str, str]) -> Hatched:
        """A file of this project, run in its folder; ``output`` is the file descriptor that it writes to."""
        return Hatched(self, self.ask({"argv": argv, "env": env}, output))

    def ask(self, question: dict[str, Any], *files: int) -> Any:
        with self._lock:
            message = json.dumps(question).encode()
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
            self._socket.sendmsg([message], rights)
            return json.loads(self._socket.recv(MAX_REQUEST))

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


@functools.cache
def the_nest() -> Nest:
    """That of this process, started when it is needed first."""
    nest = Nest()
    atexit.register(nest.close)
    return nest


# -- in the process that forks -----------------------------------------------------------------------------------------


def import_all() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a process with threads cannot be forked"


def exit_code(pid: int) -> int | None:
    """None while it runs."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def become(question: dict[str, Any], output: int) -> None:
    """In the fork: all that a shell would have given it."""
    os.setsid()
    os.environ.clear()
    os.environ.update(question["env"])
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.argv = question["argv"]


def answer(control: socket.socket) -> bool:
    """Whether this is a fork, which is to go on as the program. Raises EOFError when nobody asks any more."""
    message, rights, _, _ = control.recvmsg(MAX_REQUEST, socket.CMSG_SPACE(array.array("i").itemsize))
    if not message:
        raise EOFError
    question = json.loads(message)
    if "poll" in question:
        control.send(json.dumps(exit_code(question["poll"])).encode())
        return False
    output = array.array("i", rights[0][2])[0]
    pid = os.fork()
    if pid == 0:
        become(question, output)
        return True
    os.close(output)
    control.send(json.dumps(pid).encode())
    return False


def main() -> None:
    with socket.socket(fileno=int(sys.argv[1])) as control:
        import_all()
        gc.collect()
        gc.freeze()
        try:
            while not answer(control):
                pass
        except EOFError:
            return
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
