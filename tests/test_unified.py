"""Engine arguments from YAML to a command line."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.unified import UNIFIED_ARGUMENTS, to_argv
from tests.doubles import PATIENT


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (2048, ["--x-y", "2048"]),
        (0.9, ["--x-y", "0.9"]),
        ("half", ["--x-y", "half"]),
        ("", ["--x-y", ""]),
        (0, ["--x-y", "0"]),
        (-1, ["--x-y=-1"]),
        ("--port", ["--x-y=--port"]),
        (True, ["--x-y"]),
        (False, ["--no-x-y"]),
        (None, []),
        ([1, 2], ["--x-y", "1", "2"]),
        (("a=/x", "b=/y"), ["--x-y", "a=/x", "b=/y"]),
        ({"a": [1, None]}, ["--x-y", '{"a": [1, null]}']),
        ([{"name": "a"}, [1]], ["--x-y", '{"name": "a"}', "[1]"]),
        ("$(rm -rf /); two words", ["--x-y", "$(rm -rf /); two words"]),
    ],
)
def test_a_value_becomes_words(value: Any, words: list[str]) -> None:
    assert to_argv({"x_y": value}) == words


@pytest.mark.parametrize("name", ["max_model_len", "max-model-len", "--max-model-len", "--max_model_len"])
def test_a_name_may_be_written_in_every_way(name: str) -> None:
    assert to_argv({name: 1}) == ["--max-model-len", "1"]


def test_arguments_keep_their_order() -> None:
    assert to_argv({"b": 1, "a": True, "c": None, "d": False}) == ["--b", "1", "--a", "--no-d"]


@PATIENT
@given(st.dictionaries(st.sampled_from(sorted(UNIFIED_ARGUMENTS)), st.integers() | st.booleans() | st.text()))
def test_every_argument_is_said_once(arguments: dict[str, Any]) -> None:
    argv = to_argv(arguments)
    for name, value in arguments.items():
        option = ("--no-" if value is False else "--") + name.replace("_", "-")
        words = [option] if isinstance(value, bool) else [option, str(value)]
        assert "\n".join(words) in "\n".join(argv) or "=".join(words) in argv
    assert sum(word.startswith("--") for word in argv) == len(arguments)


def test_unified_names_are_snake_case() -> None:
    assert all(name == name.lower() and "-" not in name for name in UNIFIED_ARGUMENTS)
