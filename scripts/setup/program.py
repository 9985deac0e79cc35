"""What the scripts have in common as programs: their exit status, and an end in words instead of a traceback."""

import io
import signal
import sys
from collections.abc import Callable
from types import FrameType

from scripts.setup.console import Console
from scripts.setup.trouble import Stopped, Trouble

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_program(action: Callable[[Console], int]) -> int:
    console = Console()
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup's, say
            signal.signal(signum, raise_stopped)
    try:
        return action(console)
    except Trouble as trouble:
        console.say(f"\n{trouble}")
        return 1
    except Stopped as stopped:
        console.say("\nStopped. Run this again whenever you like: it goes on where it was.")
        return 128 + stopped.signum
    finally:
        close_output()


def raise_stopped(signum: int, frame: FrameType | None) -> None:
    """Once: whoever cleans up is not disturbed again, and takes seconds at most."""
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise Stopped(signum)


def close_output() -> None:
    """Where nobody reads any more, Python would complain at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = io.StringIO()
