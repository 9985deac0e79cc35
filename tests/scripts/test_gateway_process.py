"""Signals on their way to the gateway, with a real child that counts them."""

import subprocess
import sys

from tests.scripts.support import ROOT

# Stands in for gateway.py: says that it is up, then which signals come, and ends after so many.
CHILD = """
import signal
every = {{signal.SIGINT, signal.SIGTERM, signal.SIGHUP}}
signal.pthread_sigmask(signal.SIG_BLOCK, every)
print("up", flush=True)
for _ in range({wanted}):
    print("got", signal.Signals(signal.sigwait(every)).name, flush=True)
"""

# Stands in for quickstart: starts the child, and waits for its end.
PARENT = """
import os, sys
from pathlib import Path
from scripts.setup.gateway_process import GatewayProcess
gateway = GatewayProcess()
gateway.start([sys.executable, "-c", sys.argv[1]], os.environ, Path.cwd())
while gateway.returncode is None:
    pass
print("asked", gateway.asked, "clean", gateway.ended_as_asked(), flush=True)
"""


def start(wanted: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD.format(wanted=wanted)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert read(process) == "up"
    return process


def read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def finish(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    process.stdout.close()
    process.wait(20)


def test_each_signal_reaches_the_gateway_once() -> None:
    process = start(wanted=2)
    process.send_signal(2)
    assert read(process) == "got SIGINT"
    process.send_signal(15)
    assert read(process) == "got SIGTERM"
    assert read(process) == "asked [2, 15] clean True"
    finish(process)
    assert process.returncode == 0


def test_a_closed_terminal_is_an_ordinary_end() -> None:
    process = start(wanted=1)
    process.send_signal(1)
    assert read(process) == "got SIGTERM"
    assert read(process) == "asked [1] clean True"
    finish(process)


def test_the_gateway_does_not_outlive_a_killed_quickstart() -> None:
    process = start(wanted=1)
    process.kill()
    assert read(process) == "got SIGTERM"
    finish(process)
