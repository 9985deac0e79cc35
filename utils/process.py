"""Ties between processes. Linux."""

import ctypes
import os
import signal
from typing import Final

PR_SET_PDEATHSIG: Final = 1


def die_with_parent() -> None:
    """The kernel kills this process when the thread that started it ends (prctl(2)).

    For children that must not outlive their parent however it dies, SIGKILL included.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == 1:  # it has died before we asked
        os._exit(1)
