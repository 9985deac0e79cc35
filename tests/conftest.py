"""Shared by all tests."""

import signal
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs so, and all that they start: Ctrl-C would reach none of our programs.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def anyio_backend() -> str:
    """Async tests (``@pytest.mark.anyio``) run on asyncio."""
    return "asyncio"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Who wants no engines does not wait for what their tests import."""
    is_engines = collection_path == Path(__file__).with_name("engine")
    return True if is_engines and config.option.markexpr == "not engine" else None
