"""vLLM's command line as the installed version has it. No model is loaded."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from backends.vllm_complaints import GONE, OURS
from config.unified import UNIFIED_ARGUMENTS
from tests.support import ROOT, free_port, running

pytestmark = pytest.mark.engine

LIST_OPTIONS = """
import json
from backends.vllm_backend import create_parser
print("OPTIONS", json.dumps(list(create_parser("vLLM")._option_string_actions)))
"""


@pytest.fixture(scope="module")
def options(vllm_installed: None) -> frozenset[str]:
    """The options of vLLM's parser; in a process of its own, since vLLM changes the one that imports it."""
    done = subprocess.run(
        [sys.executable, "-c", LIST_OPTIONS], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("OPTIONS "))
    return frozenset(json.loads(line.removeprefix("OPTIONS ")))


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def test_every_unified_argument_exists(options: frozenset[str]) -> None:
    assert {name for name in UNIFIED_ARGUMENTS if option(name) not in options} == set()


def test_what_is_said_to_be_gone_is_gone_and_what_replaces_it_is_there(options: frozenset[str]) -> None:
    assert {name for name in GONE if option(name) in options} == set()
    named = {word for hint in GONE.values() for word in re.findall(r"--[a-z-]+", hint)}
    assert named - options == set()


def test_arguments_of_vllms_own_server_exist(options: frozenset[str]) -> None:
    assert {name for name in OURS if option(name) not in options} == set()


def test_an_unknown_argument_is_named_before_anything_is_loaded(tmp_path: Path, model_folder: Path) -> None:
    argv = ["serve.py", "--model", str(model_folder), "--backend", "vllm", "--port", str(free_port())]
    with running([*argv, "--max-modl-len", "512"], tmp_path / "worker.log") as program:
        assert program.wait(120) == 2
        last = program.output().splitlines()[-1]
    assert re.match(r"serve\.py: vLLM \S+ has no argument --max-modl-len: did you mean --max-model-len", last)
    assert "Initializing a V1 LLM engine" not in program.output()


def test_a_wrong_value_is_named_before_anything_is_loaded(tmp_path: Path, model_folder: Path) -> None:
    argv = ["serve.py", "--model", str(model_folder), "--backend", "vllm", "--port", str(free_port())]
    with running([*argv, "--max-model-len", "9999999"], tmp_path / "worker.log") as program:
        assert program.wait(120) == 2
        last = program.output().splitlines()[-1]
    assert "max_model_len (9999999) is greater than" in last
    assert "Traceback" not in program.output()
