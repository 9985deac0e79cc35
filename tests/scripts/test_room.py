from pathlib import Path

import pytest

from scripts.setup.room import GIB, Need, installing_needs, nearest_existing, require_room
from scripts.setup.trouble import Trouble


def test_folders_on_one_disk_are_added_up(tmp_path: Path) -> None:
    needs = [Need(tmp_path / "a", 4, "packages"), Need(tmp_path / "b", 1.5, "downloads")]
    require_room(needs, free=lambda path: 6 * GIB)
    with pytest.raises(Trouble) as trouble:
        require_room(needs, free=lambda path: 5 * GIB)
    assert "5.0 GiB are free, and 5.5 GiB are needed" in str(trouble.value)
    assert f"1.5 GiB in {tmp_path / 'b'}: downloads" in str(trouble.value)


def test_disks_are_looked_at_one_by_one(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    large.mkdir()
    needs = [Need(small, 1, "a little"), Need(large, 9, "much")]

    def device(path: Path) -> int:
        return 1 if path == small else 2

    require_room(needs, free=lambda path: (1 if path == small else 9) * GIB, device=device)
    with pytest.raises(Trouble, match=r"9.0 GiB are needed"):
        require_room(needs, free=lambda path: 5 * GIB, device=device)


def test_a_folder_that_is_not_there_yet_is_on_its_parents_disk(tmp_path: Path) -> None:
    assert nearest_existing(tmp_path / "not" / "there") == tmp_path


def test_cuda_needs_more(tmp_path: Path) -> None:
    cpu = installing_needs(tmp_path, tmp_path, gpu=False, environ={})
    cuda = installing_needs(tmp_path, tmp_path, gpu=True, environ={"PIP_CACHE_DIR": "/elsewhere"})
    assert sum(need.gib for need in cuda) > sum(need.gib for need in cpu)
    assert Path("/elsewhere") in [need.folder for need in cuda]
