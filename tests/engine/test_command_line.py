"""The engines' command lines as the installed versions have them. No model is loaded."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from backends.sglang.arguments import CHOICES, FLAGS, NO_COUNTERPART, PARSERS, RENAMED, SAME
from backends.sglang_backend import CPU_DEFAULTS
from backends.vllm.complaints import GONE, OURS
from config.unified import UNIFIED_ARGUMENTS
from tests.support import ROOT, free_port, running

pytestmark = pytest.mark.engine

LIST_SGLANG_OPTIONS = """
import argparse, json, os
import torch
from backends import cpu_shims
os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
cpu_shims.activate(os.environ)
from sglang.srt.server_args import ServerArgs
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
actions = parser._option_string_actions.items()
print("OPTIONS", json.dumps({name: list(action.choices or []) for name, action in actions}))
"""

LIST_OPTIONS = """
import json, os
from backends import cpu_shims
cpu_shims.activate(os.environ)
from backends.vllm_backend import create_parser
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
options = {name: [] for name in create_parser("vLLM")._option_string_actions}
options["--tool-call-parser"] = list(ToolParserManager.list_registered())
options["--reasoning-parser"] = list(ReasoningParserManager.list_registered())
print("OPTIONS", json.dumps(options))
"""


@pytest.fixture(scope="module")
def vllm_choices(vllm_installed: None) -> dict[str, list[str]]:
    """The options of vLLM's parser, and what may be chosen where that is known."""
    return options_printed_by(LIST_OPTIONS)


@pytest.fixture(scope="module")
def options(vllm_choices: dict[str, list[str]]) -> frozenset[str]:
    return frozenset(vllm_choices)


@pytest.fixture(scope="module")
def sglang_options(sglang_choices: dict[str, list[str]]) -> frozenset[str]:
    return frozenset(sglang_choices)


@pytest.fixture(scope="module")
def sglang_choices() -> dict[str, list[str]]:
    if importlib.util.find_spec("sglang") is None:
        pytest.skip("SGLang is not installed here")
    return options_printed_by(LIST_SGLANG_OPTIONS)


def options_printed_by(code: str) -> dict[str, list[str]]:
    """In a process of its own, since an engine changes the one that imports it."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("OPTIONS "))
    found: dict[str, list[str]] = json.loads(line.removeprefix("OPTIONS "))
    return found


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


def test_sglang_has_every_argument_that_the_table_turns_into(sglang_options: frozenset[str]) -> None:
    chosen = [words for choices in CHOICES.values() for words in choices.values()]
    computed = [["--ep-size"], ["--dist-init-addr"], ["--grammar-backend"], ["--max-loras-per-batch"]]
    pairs = [words for pair in FLAGS.values() for words in pair]
    targets = {word for words in (*chosen, *computed, *pairs) for word in words if word.startswith("--")}
    targets |= {f"--{name}" for name in RENAMED.values()} | {option(name) for name in SAME}
    targets |= {word for words in CPU_DEFAULTS.values() for word in words if word.startswith("--")}
    targets |= {word for hint in NO_COUNTERPART.values() for word in re.findall(r"--[a-z-]+", hint)} - {
        "--tokenizer", "--gpu-memory-utilization",
    }  # fmt: skip
    assert targets - sglang_options == set()


def test_parsers_that_go_by_two_names_exist_under_both(
    vllm_choices: dict[str, list[str]], sglang_choices: dict[str, list[str]]
) -> None:
    for name, parsers in PARSERS.items():
        assert set(parsers) - set(vllm_choices[option(name)]) == set()
        assert set(parsers.values()) - set(sglang_choices[option(name)]) == set()


def test_what_sglang_is_said_not_to_have_it_has_not(sglang_options: frozenset[str]) -> None:
    assert {name for name in (*NO_COUNTERPART, *RENAMED) if option(name) in sglang_options} == set()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--context-lenght", "512"], "has no argument --context-lenght: did you mean --context-length"),
        (["--pooler-config", "{}"], "has nothing like --pooler-config"),
        (["--gatway-address", "http://x"], "did you mean --gateway-address"),
    ],
)
def test_sglang_names_a_wrong_argument_before_anything_is_loaded(
    tmp_path: Path, model_folder: Path, sglang_options: frozenset[str], argv: list[str], said: str
) -> None:
    own = ["serve.py", "--model", str(model_folder), "--backend", "sglang", "--port", str(free_port())]
    with running([*own, *argv], tmp_path / "worker.log") as program:
        assert program.wait(120) == 2
        assert said in program.output().splitlines()[-1]
    assert "Load weight" not in program.output()


@pytest.mark.parametrize(("engine", "listed"), [("vllm", "--max-model-len"), ("sglang", "--context-length")])
def test_help_lists_an_engines_own_arguments(engine: str, listed: str) -> None:
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed here")
    argv = [sys.executable, "serve.py", f"--help={engine}"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert listed in done.stdout
    assert len(done.stdout.splitlines()) > 500


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
