"""What can go wrong on the way to a running gateway.

Exception
├── Trouble   foreseeable: its text says what is wrong and what to do, and is all that a person sees
└── Stopped   a signal asked us to stop before the gateway ran
"""

import signal


class Trouble(Exception):
    """Something foreseeable went wrong. The text is for a person."""


class Stopped(Exception):
    """Ctrl-C or a signal, while nothing runs yet that would need a graceful end."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
