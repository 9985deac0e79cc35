"""The gateway as our child: signals reach it once, through us, and it never outlives us."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from scripts.setup.jobs import die_with_parent

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CLEAN = {0, *(-signum for signum in FORWARDED), *(128 + signum for signum in FORWARDED)}
"""Exit statuses of a gateway that was asked to end: servers re-raise the signal that ended them."""


class GatewayProcess:
    """Started once. From ``start`` on, signals to us are the gateway's."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, argv: Sequence[str], environ: Mapping[str, str], folder: Path) -> None:
        for signum in FORWARDED:
            if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup's, say
                signal.signal(signum, self.forward)
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env=dict(environ),
            start_new_session=True,  # else a terminal's Ctrl-C would reach it twice
            preexec_fn=die_with_parent(),  # noqa: PLW1509 - this process has no threads
        )
        early = list(self.asked)
        self._process = process
        for number in early:  # came while there was no process to tell
            self._tell(number)

    def forward(self, signum: int, frame: FrameType | None = None) -> None:
        """A first one means: finish what is in flight and end. A second one: end now."""
        if signum == signal.SIGHUP and self.asked:
            return  # a closing terminal is no impatience
        self.asked.append(signum)
        self._tell(signum)

    def stop(self) -> None:
        if not self.asked:
            self.forward(signal.SIGTERM)

    @property
    def returncode(self) -> int | None:
        return self._process.poll() if self._process else None

    def ended_as_asked(self) -> bool:
        return bool(self.asked) and self.returncode in CLEAN

    def _tell(self, signum: int) -> None:
        # SIGHUP would end it on the spot; a closed terminal shall end it in order.
        wanted = signal.SIGTERM if signum == signal.SIGHUP else signum
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, wanted)
