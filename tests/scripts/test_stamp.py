from pathlib import Path

import pytest

from scripts.setup.stamp import NAME, Stamp, fingerprint, read_stamp, remove_stamp, write_stamp


def test_a_stamp_is_read_back(tmp_path: Path) -> None:
    stamp = Stamp("abc", dev=True)
    write_stamp(tmp_path, stamp)
    assert read_stamp(tmp_path) == stamp
    remove_stamp(tmp_path)
    assert read_stamp(tmp_path) is None
    remove_stamp(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"fingerprint": "abc"}'])
def test_a_spoilt_stamp_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    assert read_stamp(tmp_path) is None


def test_the_developers_environment_is_good_for_running_too() -> None:
    assert Stamp("abc", dev=True).covers(Stamp("abc", dev=False))
    assert not Stamp("abc", dev=False).covers(Stamp("abc", dev=True))
    assert not Stamp("abc", dev=True).covers(Stamp("abd", dev=False))


def test_the_fingerprint_changes_with_the_files_and_the_place(tmp_path: Path) -> None:
    lock = tmp_path / "constraints.txt"
    lock.write_text("a==1")
    before = fingerprint(tmp_path, [lock])
    assert fingerprint(tmp_path, [lock]) == before
    assert fingerprint(tmp_path / "moved", [lock]) != before
    lock.write_text("a==2")
    assert fingerprint(tmp_path, [lock]) != before
