from pathlib import Path

from scripts.setup.environment import Environment, pip_environ


def create_site(root: Path) -> Path:
    site = root / ".venv" / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    return site


def test_packages_that_pip_did_not_finish_are_forgotten(tmp_path: Path) -> None:
    site = create_site(tmp_path)
    for name in ("whole-1.0", "half-2.0"):
        (site / f"{name}.dist-info").mkdir()
        (site / f"{name}.dist-info" / "METADATA").touch()
    (site / "whole-1.0.dist-info" / "RECORD").touch()
    (site / "~hole").mkdir()
    (site / "~ile.py").touch()
    assert Environment(tmp_path).mend() == ["half-2.0", "~hole", "~ile.py"]
    assert [path.name for path in site.iterdir()] == ["whole-1.0.dist-info"]
    assert Environment(tmp_path).mend() == []


def test_what_is_installed_is_told_by_the_names_of_the_lock(tmp_path: Path) -> None:
    site = create_site(tmp_path)
    for name in ("Jinja2-3.1.6", "opencv_python_headless-5.0", "torch-2.13.0+cpu"):
        (site / f"{name}.dist-info").mkdir()
    assert Environment(tmp_path).installed() == {"jinja2==3.1.6", "opencv-python-headless==5.0", "torch==2.13.0+cpu"}


def test_without_an_environment_nothing_is_there(tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    assert environment.installed() == set()
    assert environment.mend() == []
    assert not environment.works()


def test_pip_gets_the_persons_index_and_no_other_place() -> None:
    environ = pip_environ({"PIP_INDEX_URL": "x", "PIP_TARGET": "/y", "PYTHONPATH": "/z", "PIP_USER": "1"})
    assert environ["PIP_INDEX_URL"] == "x"
    assert environ["PIP_USER"] == "0"
    assert not {"PIP_TARGET", "PYTHONPATH"} & set(environ)
