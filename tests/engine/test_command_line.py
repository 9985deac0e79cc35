"""The engines' command lines as the installed versions have them. No model is loaded."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backends.sglang.arguments import CHOICES, FLAGS, NO_COUNTERPART, PARSERS, RENAMED, SAME
from backends.sglang_backend import CPU_DEFAULTS
from backends.vllm.complaints import GONE, OURS
from config.unified import UNIFIED_ARGUMENTS, to_argv
from tests.support import ROOT, free_port, running

pytestmark = pytest.mark.engine

GPU_ARGUMENTS: dict[str, Any] = {
    "tensor_parallel_size": 2, "pipeline_parallel_size": 2, "data_parallel_size": 2, "enable_expert_parallel": True,
    "gpu_memory_utilization": 0.5, "enable_sleep_mode": True, "quantization": "fp8", "kv_cache_dtype": "fp8_e5m2",
    "cpu_offload_gb": 4, "disable_custom_all_reduce": True, "enable_lora": True, "max_loras": 3,
}  # fmt: skip
"""What no machine without GPUs can run: followed down to the engine's own settings."""
ON_SGLANG = {
    "tp_size": 2, "pp_size": 2, "dp_size": 2, "ep_size": 2, "mem_fraction_static": 0.5, "enable_memory_saver": True,
    "quantization": "fp8", "kv_cache_dtype": "fp8_e5m2", "cpu_offload_gb": 4, "disable_custom_all_reduce": True,
    "enable_lora": True, "max_loras_per_batch": 4,
}  # fmt: skip

LIST_SGLANG_OPTIONS = """
import argparse, json, os, sys
import torch
from backends import cpu_shims
os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
cpu_shims.activate(os.environ)
from sglang.srt.server_args import ServerArgs
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
actions = parser._option_string_actions.items()
print("OPTIONS", json.dumps({name: list(action.choices or []) for name, action in actions}))
from backends.sglang.arguments import to_sglang
parsed = parser.parse_args(["--model-path", "m", *to_sglang(sys.argv[1:], parser._option_string_actions)])
print("CONFIGURED", json.dumps(vars(parsed), default=str))
"""

LIST_OPTIONS = """
import json, os, sys
from backends import cpu_shims
cpu_shims.activate(os.environ)
from backends.vllm_backend import create_parser
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
options = {name: [] for name in create_parser("vLLM")._option_string_actions}
options["--tool-call-parser"] = list(ToolParserManager.list_registered())
options["--reasoning-parser"] = list(ReasoningParserManager.list_registered())
print("OPTIONS", json.dumps(options))
from vllm.engine.arg_utils import AsyncEngineArgs
parsed = AsyncEngineArgs.from_cli_args(create_parser("vLLM").parse_args(["--model", "m", *sys.argv[1:]]))
print("CONFIGURED", json.dumps(vars(parsed), default=str))
"""

Told = dict[str, Any]
"""What an engine says of its options (with what may be chosen, where that is known), and of how it is configured."""


@pytest.fixture(scope="module")
def vllm_told(vllm_installed: None) -> Told:
    return told_by(LIST_OPTIONS)


@pytest.fixture(scope="module")
def vllm_choices(vllm_told: Told) -> dict[str, list[str]]:
    found: dict[str, list[str]] = vllm_told["OPTIONS"]
    return found


@pytest.fixture(scope="module")
def options(vllm_choices: dict[str, list[str]]) -> frozenset[str]:
    return frozenset(vllm_choices)


@pytest.fixture(scope="module")
def sglang_options(sglang_choices: dict[str, list[str]]) -> frozenset[str]:
    return frozenset(sglang_choices)


@pytest.fixture(scope="module")
def sglang_told() -> Told:
    if importlib.util.find_spec("sglang") is None:
        pytest.skip("SGLang is not installed here")
    return told_by(LIST_SGLANG_OPTIONS)


@pytest.fixture(scope="module")
def sglang_choices(sglang_told: Told) -> dict[str, list[str]]:
    found: dict[str, list[str]] = sglang_told["OPTIONS"]
    return found


def told_by(code: str) -> Told:
    """In a process of its own, since an engine changes the one that imports it."""
    argv = [sys.executable, "-c", code, *to_argv(GPU_ARGUMENTS)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.partition(" ") for line in done.stdout.splitlines()]
    return {word: json.loads(rest) for word, _, rest in lines if word in ("OPTIONS", "CONFIGURED")}


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


def test_what_is_for_gpus_alone_reaches_the_engines_settings(vllm_told: Told, sglang_told: Told) -> None:
    for told, expected in ((vllm_told, GPU_ARGUMENTS), (sglang_told, ON_SGLANG)):
        configured = told["CONFIGURED"]
        assert {name: configured[name] for name in expected} == expected


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
