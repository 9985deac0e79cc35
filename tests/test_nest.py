"""The tests' own machinery: programs that are forked, and the order that tests are run in."""

import os
import signal
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import shared_out
from tests.support import free_port, running, wait_until


@pytest.mark.share("programs")
def test_a_forked_program_ends_as_any_other_and_has_a_session_of_its_own(tmp_path: Path) -> None:
    argv = ["serve.py", "--model", "none", "--backend", "fake", "--port", str(free_port())]
    with running(argv, tmp_path / "killed") as killed, running(argv[:-1], tmp_path / "wrong") as wrong:
        wait_until(lambda: "ready" in killed.output(), "ready")
        assert killed.process.poll() is None
        assert os.getsid(killed.pid) == killed.pid
        killed.signal(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
        assert wrong.wait() == 2
    assert "--port" in wrong.output()


class Item:
    """What is asked of pytest's: its mark."""

    def __init__(self, share: str) -> None:
        self.mark = pytest.mark.share(share).mark if share else None

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        assert name == "share"
        return self.mark


@given(st.lists(st.sampled_from(["", "", "", "a", "b"])), st.integers(1, 4))
def test_no_test_is_lost_and_who_shares_stands_together(shares: list[str], processes: int) -> None:
    items = cast(list[pytest.Item], [Item(share) for share in shares])
    found = shared_out(items, processes)
    assert sorted(map(id, found)) == sorted(map(id, items))
    names = [item.get_closest_marker("share") for item in found]
    for share in "ab":
        places = [place for place, mark in enumerate(names) if mark and mark.args == (share,)]
        first = min(places, default=0)
        assert places == list(range(first, first + len(places)))
