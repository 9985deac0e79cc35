"""The scripts as a person runs them; nothing here gets as far as installing."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.setup.machine import has_nvidia_gpu, require_linux
from scripts.setup.trouble import Trouble
from tests.scripts.support import ROOT

pytestmark = pytest.mark.share("processes")

SCRIPTS = ("quickstart", "test", "check", "constraints")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what quickstart needs before it installs."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt", "constraints-cuda.txt"):
        shutil.copy(ROOT / name, root)
    return root


@pytest.fixture
def python_alone(tmp_path: Path) -> Iterator[str]:
    """A PATH with the Python of these tests and nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python3").symlink_to(sys.executable)
    yield str(folder)


def run(script: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [script, *arguments], env={**os.environ, **environ}, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_can_be_executed_and_read_by_any_shell(name: str) -> None:
    script = ROOT / "scripts" / name
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/bin/sh\n")
    assert subprocess.run(["sh", "-n", script], check=False).returncode == 0


def test_without_a_python_it_says_what_to_do(tmp_path: Path) -> None:
    done = run(ROOT / "scripts" / "quickstart", PATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("iChat needs Python 3.11, 3.12, 3.13 or 3.14, and finds none of them here.\n")
    assert "apt install python3" in done.stderr


def test_an_old_python_is_passed_over(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")  # what the question for its version ends with
    old.chmod(0o755)
    done = run(ROOT / "scripts" / "quickstart", PATH=str(tmp_path))
    assert done.returncode == 1
    assert "finds none of them here" in done.stderr


def test_help_explains_every_option() -> None:
    done = run(ROOT / "scripts" / "quickstart", "--help")
    assert done.returncode == 0
    for word in ("--port", "--model", "--install-only", "ICHAT_CACHE", "Ctrl-C"):
        assert word in done.stdout


@pytest.mark.parametrize("port", ["0", "65536", "http", "-1"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    done = run(ROOT / "scripts" / "quickstart", "--port", port)
    assert done.returncode == 2
    assert "--port" in done.stderr


def test_a_taken_port_is_told_before_anything_is_installed(checkout: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = run(checkout / "scripts" / "quickstart", "--port", str(port))
    assert done.returncode == 1
    assert f"Port {port} on 127.0.0.1 is taken" in done.stdout
    assert f"(pid {os.getpid()})" in done.stdout
    assert not (checkout / ".venv").exists()


def test_a_model_beside_an_existing_config_is_refused(checkout: Path) -> None:
    config = checkout / "config.yaml"
    config.write_text("server_settings: {port: 4000}\n")
    done = run(checkout / "scripts" / "quickstart", "--model", "org/model")
    assert done.returncode == 1
    assert "there is a config.yaml already" in done.stdout
    assert config.read_text() == "server_settings: {port: 4000}\n"
    assert not (checkout / ".venv").exists()


def test_a_model_that_is_nowhere_is_refused_from_any_folder(checkout: Path, tmp_path: Path) -> None:
    script = checkout / "scripts" / "quickstart"
    done = subprocess.run(
        [script, "--model", "./nowhere"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert f"there is no folder {tmp_path / 'nowhere'}" in done.stdout


def test_check_says_what_to_do_without_an_environment(checkout: Path) -> None:
    done = run(checkout / "scripts" / "check")
    assert done.returncode == 1
    assert "run scripts/test once" in done.stderr


def test_a_python_called_python3_will_do(python_alone: str) -> None:
    assert run(ROOT / "scripts" / "quickstart", "--help", PATH=python_alone).returncode == 0


def test_other_systems_are_told_where_it_runs() -> None:
    require_linux("linux", "aarch64")
    with pytest.raises(Trouble, match="This is darwin on arm64"):
        require_linux("darwin", "arm64")


def test_a_gpu_is_told_by_its_driver_or_its_tool(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    absent = tmp_path / "version"
    assert not has_nvidia_gpu(absent, str(tool))
    tool.write_text("#!/bin/sh\necho 'GPU 0: some card'\n")
    tool.chmod(0o755)
    assert has_nvidia_gpu(absent, str(tool))
    tool.write_text("#!/bin/sh\necho 'no devices were found'\nexit 6\n")
    assert not has_nvidia_gpu(absent, str(tool))
    absent.touch()
    assert has_nvidia_gpu(absent, str(tool))
