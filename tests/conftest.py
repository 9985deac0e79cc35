"""Shared by all tests."""

import gc
import os
import signal
import sys
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs so, and all that they start: Ctrl-C would reach none of our programs.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Each process would else compile all that it imports, and pytest rewrite each test, in each run.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that import LiteLLM come first: pytest-xdist gives the first process neighbours, and it alone imports."""
    items.sort(key=lambda item: item.get_closest_marker("litellm") is None)


def pytest_collection_finish() -> None:
    """What was imported and collected stays: the garbage collector need not look at it again."""
    gc.freeze()
