"""Compiles the installed packages to bytecode on all cores; pip would do it on one, and all of it."""

import compileall
import re
import sys

SELDOM = re.compile(r"/(tests?|testing|numba|pygments|sentry_sdk)/|/(transformers|model_executor)/models/")
"""Of this hardly a file is imported by a worker, and those few compile themselves: it would be half of the time."""


def main() -> int:
    # A few packages ship files for other Pythons; that these do not compile is no failure.
    compileall.compile_dir(sys.argv[1], rx=SELDOM, quiet=2, workers=0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
