"""What vLLM's parser gets, and what a worker shows of it."""

import json
from pathlib import Path

import pytest

from backends.engine_arguments import MASK, check_model_folder, engine_argv, given_options, shown_arguments
from config.args import WorkerArguments
from utils.errors import ConfigError


def test_the_users_arguments_follow_the_workers_own_untouched() -> None:
    users = ("--max_model_len=8", "--lora-modules", "a=/x", "--no-enforce-eager")
    worker = WorkerArguments(model="/m", model_name="a", aliases=("b",), host="::1", engine_argv=users)
    own = ["--model", "/m", "--served-model-name", "a", "b", "--allowed-media-domains", "none.invalid"]
    own += ["--host", "::1", "--port", "8001"]
    assert engine_argv(worker, 8001) == [*own, *users]


def test_what_media_may_be_loaded_is_told_to_the_engine_too() -> None:
    worker = WorkerArguments(model="/m", allowed_media_domains=("a.b", "::1"), allowed_local_media_path="/media")
    argv = engine_argv(worker, 1)
    assert argv[argv.index("--allowed-local-media-path") + 1] == "/media"
    assert argv[argv.index("--allowed-media-domains") + 1 :][:3] == ["a.b", "[::1]", "--host"]


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["--max_model_len=8", "--dtype", "half"], {"max-model-len", "dtype"}),
        (["--compilation-config.mode", "3", "--compilation_config.x=1"], {"compilation-config"}),
        (["-tp", "2", "-O3", "-O", "2", "-cc.mode=0"], {"tp", "O", "cc"}),
        (["--seed", "-1", "-.5", "--", "-"], {"seed"}),
        ([], set()),
    ],
)
def test_given_options_are_named_as_vllm_sees_them(argv: list[str], names: set[str]) -> None:
    assert given_options(argv) == names


def test_a_folder_with_a_model_and_a_hub_id_are_left_to_vllm(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    check_model_folder(str(tmp_path), ())
    check_model_folder("org/model", ())
    check_model_folder(str(tmp_path / "config.json"), ())


@pytest.mark.parametrize("model", ["/no/such/folder", "./none", "../none", "~/none"])
def test_a_path_to_nothing_is_refused(model: str) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        check_model_folder(model, ())


def test_a_folder_without_a_model_is_refused_unless_it_is_described_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        check_model_folder(str(tmp_path), ())
    check_model_folder(str(tmp_path), {"hf-config-path"})


def test_only_what_differs_from_the_defaults_is_shown() -> None:
    effective = {"a": 1, "b": 2, "mode": 3, "model": "/m", "port": 1, "added": 5}
    defaults = {"a": 1, "b": 1, "mode": "3", "model": "", "port": 0}
    assert shown_arguments(effective, defaults) == {"b": 2}


@pytest.mark.parametrize("name", ["api_key", "hf_token", "ssl_keyfile_password", "watermark_config", "apikey"])
def test_secrets_are_masked(name: str) -> None:
    assert shown_arguments({name: ["sk-1"]}, {name: None}) == {name: MASK}


def test_secrets_within_are_masked_and_counted_tokens_are_not() -> None:
    effective = {"kv_transfer_config": {"extra": [{"api-key": "sk-1"}]}, "max_num_batched_tokens": 9, "token": None}
    shown = shown_arguments(effective, dict.fromkeys(effective, ""))
    assert shown == {"kv_transfer_config": {"extra": [{"api-key": MASK}]}, "max_num_batched_tokens": 9, "token": None}


def test_what_is_shown_is_plain_json() -> None:
    effective = {"a": {1: Path("/x")}, "b": (1, {2}), "c": object()}
    assert json.loads(json.dumps(shown_arguments(effective, dict.fromkeys(effective))))["a"] == {"1": "/x"}
