from pathlib import Path

import pytest

from scripts.setup.demo_model import FILES, is_complete, models_folder, put_in_place, remove_abandoned


def fill(folder: Path, text: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    for name in FILES:
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"ICHAT_CACHE": "/cache"}, Path("/cache/models")),
        ({"XDG_CACHE_HOME": "/xdg"}, Path("/xdg/ichat/models")),
        ({}, Path.home() / ".cache" / "ichat" / "models"),
    ],
)
def test_where_models_are_kept(environ: dict[str, str], folder: Path) -> None:
    assert models_folder(environ) == folder


def test_of_two_that_write_at_once_the_first_stays(tmp_path: Path) -> None:
    there = fill(tmp_path / "model", "first")
    put_in_place(fill(tmp_path / "unfinished", "second"), there)
    assert (there / FILES[0]).read_text() == "first"


def test_half_a_model_is_replaced(tmp_path: Path) -> None:
    there = fill(tmp_path / "model", "old")
    (there / FILES[1]).unlink()
    assert not is_complete(there)
    put_in_place(fill(tmp_path / "unfinished", "new"), there)
    assert is_complete(there)
    assert (there / FILES[0]).read_text() == "new"


def test_only_old_leftovers_are_removed(tmp_path: Path) -> None:
    import os

    old, young = tmp_path / ".SmolLM2-135M-Instruct-old", tmp_path / ".SmolLM2-135M-Instruct-young"
    fill(old)
    fill(young)
    os.utime(old, (0, 0))
    remove_abandoned(tmp_path / "SmolLM2-135M-Instruct")
    assert [path.name for path in tmp_path.iterdir()] == [young.name]
