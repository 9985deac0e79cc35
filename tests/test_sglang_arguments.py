"""vLLM's argument names in SGLang's words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.sglang.arguments import (
    CHOICES,
    COMPUTED,
    FLAGS,
    NO_COUNTERPART,
    RENAMED,
    SAME,
    TRANSLATED,
    split_options,
    to_sglang,
)
from config.unified import UNIFIED_ARGUMENTS, to_argv
from scripts.arguments import DOCUMENT, with_table
from tests.doubles import PATIENT
from utils.errors import ConfigError

OWN = ("--tp-size", "--context-length", "--dtype", "--tensor-parallel-size", "--chat-template")


def test_every_unified_argument_is_translated_or_refused_and_none_twice() -> None:
    groups = [SAME, RENAMED, FLAGS, CHOICES, COMPUTED, NO_COUNTERPART]
    assert frozenset().union(*groups) == UNIFIED_ARGUMENTS
    assert sum(map(len, groups)) == len(UNIFIED_ARGUMENTS)


def test_the_documented_table_is_that_of_the_code() -> None:
    text = DOCUMENT.read_text()
    assert with_table(text) == text, "run: .venv/bin/python -m scripts.arguments"


@pytest.mark.parametrize(
    ("argv", "translated"),
    [
        (["--max-model-len", "512"], ["--context-length", "512"]),
        (["--max_model_len=512"], ["--context-length", "512"]),
        (["--dtype", "float32", "--tp-size", "2"], ["--dtype", "float32", "--tp-size", "2"]),
        (["--enforce-eager"], FLAGS["enforce_eager"][0]),
        (["--no-enforce-eager"], []),
        (["--enforce-eager", "false"], []),
        (["--no-enable-prefix-caching"], ["--disable-radix-cache"]),
        (["--enable-prefix-caching"], []),
        (["--no-trust-remote-code", "--no-enable-lora"], []),
        (["--runner", "pooling"], ["--is-embedding"]),
        (["--lora-modules", "a=/x", "b=/y"], ["--lora-paths", "a=/x", "b=/y"]),
        (["--master-addr", "h", "--master-port", "7"], ["--dist-init-addr", "h:7"]),
        (["--master-port", "7"], ["--dist-init-addr", "127.0.0.1:7"]),
        (
            ["--enable-expert-parallel", "--tensor-parallel-size", "4"],
            ["--ep-size", "4", "--tensor-parallel-size", "4"],
        ),
        (["--structured-outputs-config", '{"backend": "xgrammar"}'], ["--grammar-backend", "xgrammar"]),
        (["--tool-call-parser", "openai"], ["--tool-call-parser", "gpt-oss"]),
        (["--tool-call-parser=hermes"], ["--tool-call-parser", "hermes"]),
        (["--reasoning_parser", "deepseek_r1"], ["--reasoning-parser", "deepseek-r1"]),
        (["--max-loras", "2"], ["--max-loras-per-batch", "3"]),
        (["--seed", "-1"], ["--random-seed", "-1"]),
        (["stray", "--unknown", "x"], ["stray", "--unknown", "x"]),
    ],
)
def test_arguments_in_sglangs_words(argv: list[str], translated: list[str]) -> None:
    assert to_sglang(argv, OWN) == translated


def test_what_has_no_counterpart_is_named_with_what_to_say_instead() -> None:
    with pytest.raises(ConfigError, match=r"--kv-cache-memory-bytes: say --max-total-tokens.*--max-log-len: say"):
        to_sglang(["--kv-cache-memory-bytes", "1", "--max-log-len", "5"], OWN)


@pytest.mark.parametrize(
    "argv",
    [["--runner", "draft"], ["--runner"], ["--structured-outputs-config", '{"backend": "x", "more": 1}'],
     ["--structured-outputs-config", "["], ["--structured-outputs-config"],
     ["--max-loras", "many"], ["--max-loras"]],
)  # fmt: skip
def test_values_that_sglang_cannot_have_are_refused(argv: list[str]) -> None:
    with pytest.raises(ConfigError, match=argv[0]):
        to_sglang(argv, OWN)


def test_what_sglang_calls_the_same_goes_to_sglang() -> None:
    assert to_sglang(["--max-log-len", "5"], [*OWN, "--max-log-len"]) == ["--max-log-len", "5"]


@PATIENT
@given(st.lists(st.one_of(st.text(min_size=1), st.sampled_from(["--a", "-b", "--c=1", "--no-x", "-1", "--dtype"]))))
def test_no_word_is_lost(argv: list[str]) -> None:
    assert [word for option in split_options(argv) for word in option.words] == argv


VALUES = st.integers(0, 9) | st.booleans() | st.sampled_from(["auto", "fcfs", "h"])


@PATIENT
@given(st.dictionaries(st.sampled_from(sorted(TRANSLATED)), VALUES))
def test_whatever_is_configured_ends_in_arguments_or_a_clear_error(arguments: dict[str, object]) -> None:
    try:
        argv = to_sglang(to_argv(arguments), OWN)
    except ConfigError as error:
        assert str(error)
    else:
        assert all(isinstance(word, str) for word in argv)
