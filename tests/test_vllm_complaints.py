"""vLLM's complaints, in words that say what to do."""

from types import SimpleNamespace

import pytest

from backends.base import EngineDied
from backends.complaints import MAX_MESSAGE, complaints_as_config_errors, one_sentence
from backends.vllm.complaints import (
    explain_failed_start,
    explain_foreign,
    explain_unrecognized,
    name_dead_process,
)
from tests.doubles import logged
from utils.errors import ConfigError

VLLM = "vLLM 9.9"
OPTIONS = ("--max-model-len", "--max-num-seqs", "--dtype", "-tp")


class LocalEntryNotFoundError(FileNotFoundError):
    """Like the hub client's."""


class ConnectError(Exception):
    """Like httpx's."""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-modl-len"], "vLLM 9.9 has no argument --max-modl-len: did you mean --max-model-len?"),
        (["--max_modl_len=5"], "vLLM 9.9 has no argument --max_modl_len: did you mean --max-model-len?"),
        (["--zzz", "5"], "vLLM 9.9 has no argument --zzz"),
        (["stray", "word"], "vLLM 9.9 does not know what 'stray' belongs to: write an argument's name before it"),
        (["--dtyp", "--zzz"], "vLLM 9.9 has no argument --dtyp: did you mean --dtype?; vLLM 9.9 has no argument --zzz"),
    ],
)
def test_an_unknown_argument_is_named_with_the_nearest_there_are(words: list[str], said: str) -> None:
    assert explain_unrecognized(words, OPTIONS, VLLM) == said


@pytest.mark.parametrize("option", ["--swap-space", "--swap_space", "--swap_space=4"])
def test_an_argument_of_older_versions_is_known_as_such(option: str) -> None:
    said = explain_unrecognized([option], OPTIONS, VLLM)
    assert said.startswith("vLLM 9.9 has no argument --swap")
    assert "any more: leave it out" in said


def test_arguments_of_vllms_own_server_are_refused() -> None:
    assert explain_foreign({"dtype", "seed"}, VLLM) == ""
    said = explain_foreign({"dtype", "ssl_keyfile", "uds"}, VLLM)
    assert "--ssl-keyfile" in said
    assert "--uds" in said


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (
            "1 validation error for ModelConfig\n  Value error, no (4) such [thing]. [type=value_error, input_value="
            "ArgsKwargs((), {'model': ...x': 1}), input_type=ArgsKwargs]\n"
            "    For further information visit https://errors.pydantic.dev/2.14/v/value_error",
            "no (4) such [thing].",
        ),
        (
            "1 validation error for ParallelConfig\ntensor_parallel_size\n  Input should be greater than or equal to 1 "
            "[type=greater_than_equal, input_value=0, input_type=int]\n    For further information visit https://x",
            "tensor_parallel_size: Input should be greater than or equal to 1",
        ),
        (
            "2 validation errors for A\na\n  wrong [type=x, input_value=0, input_type=int]\n"
            "    For further information visit https://x\nb\n  bad [type=y, input_value=0, input_type=int]",
            "a: wrong b: bad",
        ),
        ("Error: --a requires --b", "--a requires --b"),
        ("two\n\nlines", "two lines"),
    ],
)
def test_errors_become_one_line(message: str, sentence: str) -> None:
    assert one_sentence(message) == sentence


def test_a_sermon_is_cut_at_a_sentence() -> None:
    assert one_sentence("First. " + "word " * 200) == "First."
    assert len(one_sentence("word " * 200)) <= MAX_MESSAGE


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ValueError("bad value"), ConfigError, "vLLM 9.9: bad value"),
        (KeyError("invalid tool call parser: x"), ConfigError, "vLLM 9.9: invalid tool call parser: x"),
        (FileNotFoundError(2, "No such file", "/x"), ConfigError, "vLLM 9.9: [Errno 2] No such file: '/x'"),
        (ValueError(), ConfigError, "vLLM 9.9: ValueError"),
        (ConfigError("said already"), ConfigError, "said already"),
        (ConnectionResetError("gone"), EngineDied, "vLLM 9.9: gone"),
        (RuntimeError("no device"), EngineDied, "vLLM 9.9: RuntimeError: no device"),
    ],
)
def test_what_other_arguments_would_help_is_a_config_error(error: Exception, kind: type, said: str) -> None:
    with logged(), pytest.raises(kind) as caught, complaints_as_config_errors(VLLM):
        raise error
    assert str(caught.value) == said


def test_a_hub_that_cannot_be_reached_is_no_wrong_argument() -> None:
    """The worker may be started again: the next attempt may reach it."""
    with pytest.raises(EngineDied), complaints_as_config_errors(VLLM):
        try:
            raise ConnectError
        except ConnectError as error:
            raise LocalEntryNotFoundError("no copy") from error
    with pytest.raises(ConfigError), complaints_as_config_errors(VLLM):
        raise LocalEntryNotFoundError("no copy")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("Engine core initialization failed. Failed core proc(s): {'EngineCore': 1}", "the reason is in the log"),
        ("Engine core initialization failed. Failed core proc(s): {'EngineCore': -9}", "memory runs out"),
        ("surprise", "vLLM's engine did not start: RuntimeError: surprise"),
    ],
)
def test_a_start_that_failed_says_where_to_look(error: str, said: str) -> None:
    with logged() as events:
        assert said in explain_failed_start(RuntimeError(error))
    assert bool(events.named("engine_start_failed")) is (error == "surprise")


@pytest.mark.parametrize(
    ("failed", "codes", "name"),
    [
        ("EngineCore", {"EngineCore": -9}, "vLLM's EngineCore (killed by signal 9)"),
        ("EngineCore_DP1", {"EngineCore_DP1": 3}, "vLLM's EngineCore_DP1 (exit code 3)"),
        ("EngineCore", {}, "vLLM's EngineCore"),
        (None, {}, "vLLM's engine"),
    ],
)
def test_a_dead_process_is_named_as_well_as_vllm_knows_it(failed: str | None, codes: dict[str, int], name: str) -> None:
    manager = SimpleNamespace(failed_proc_name=failed, finished_procs=lambda: codes)
    core = SimpleNamespace(resources=SimpleNamespace(engine_manager=manager))
    assert name_dead_process(SimpleNamespace(engine_core=core)) == name
    assert name_dead_process(SimpleNamespace(engine_core=object())) == "vLLM's engine"
