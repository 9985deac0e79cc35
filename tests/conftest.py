"""Shared by all tests."""

import gc
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs so, and all that they start: Ctrl-C would reach none of our programs.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Each process would else compile all that it imports, and pytest rewrite each test, in each run.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Half the usual number: each run draws others, so that they add up.
settings.register_profile("brisk", max_examples=50)
settings.load_profile("brisk")

# The usual thresholds have the collector look through all that was imported again and again.
gc.set_threshold(50_000, 50, 50)


@pytest.fixture
def anyio_backend() -> str:
    """Async tests (``@pytest.mark.anyio``) run on asyncio."""
    return "asyncio"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Who wants no engines does not wait for what their tests import."""
    is_engines = collection_path == Path(__file__).with_name("engine")
    return True if is_engines and config.option.markexpr == "not engine" else None


def shared_out(items: list[pytest.Item], processes: int) -> list[pytest.Item]:
    """The same items: those that share something dear stand first in what pytest-xdist gives a process to begin with.

    From there no other process steals them, and long tests begin early.
    """
    shares: dict[str, list[pytest.Item]] = {}
    for item in items:
        mark = item.get_closest_marker("share")
        shares.setdefault(mark.args[0] if mark else "", []).append(item)
    others = shares.pop("", [])
    firsts = list(shares.values())
    found: list[pytest.Item] = []
    for number in range(processes):
        size = (len(items) - len(found)) // (processes - number)
        own = [item for share in firsts[number::processes] for item in share]
        end = max(0, size - len(own))
        found += own + others[:end]
        del others[:end]
    return found + others


@pytest.hookimpl(trylast=True)  # when those that are not asked for are gone
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = shared_out(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def pytest_collection_finish() -> None:
    """What was imported and collected stays: the garbage collector need not look at it again."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    """pytest is about to look for garbage several times over: what LiteLLM has brought, too, need not be looked at."""
    gc.collect()
    gc.freeze()
