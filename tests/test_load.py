"""config.yaml and the environment: one clear error for every mistake, and no secret in any."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from config.load import load_settings
from config.settings import GatewaySettings
from utils.errors import ConfigError

SECRET = "s3cret-of-mine"
EXAMPLE = """
server_settings:
  host: 0.0.0.0
  port: 4000
  log_level: info
managed_workers:
  - {model_name: chat-7b, model_path: MODELS/chat-7b, backend: vllm, gpu_ids: [0], port: 8001, heartbeat_interval: 3,
     tensor_parallel_size: 1, gpu_memory_utilization: 0.9}
  - {model_name: chat-14b, model_path: MODELS/chat-14b, backend: vllm, gpu_ids: [1, 2], port: 8002,
     heartbeat_interval: 3, tensor_parallel_size: 2}
litellm_settings:
  drop_params: True
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def load(path: Path, text: str, environ: Mapping[str, str] | None = None) -> GatewaySettings:
    path.write_text(text)
    return load_settings(path, environ or {})


def refusal(path: Path, text: str, environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, text, environ)
    return str(caught.value)


def test_the_documents_own_example_loads(path: Path, tmp_path: Path) -> None:
    for name in ("chat-7b", "chat-14b"):
        (tmp_path / name).mkdir()
    settings = load(path, EXAMPLE.replace("MODELS", str(tmp_path)))
    assert [worker.gpu_ids for worker in settings.managed_workers] == [(0,), (1, 2)]
    assert settings.managed_workers[0].engine_arguments == {"tensor_parallel_size": 1, "gpu_memory_utilization": 0.9}
    assert settings.litellm_settings.drop_params is True


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "---\n"])
def test_an_empty_file_is_a_gateway_with_defaults(path: Path, text: str) -> None:
    assert load(path, text) == GatewaySettings()


# -- the file ------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_said_with_a_way_out(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not exist.*--config"):
        load_settings(path, {})


def test_a_folder_and_a_binary_file_cannot_be_read(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path, {})
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(path, {})


@pytest.mark.parametrize("text", ["- a list\n", "a text\n", "42\n"])
def test_a_file_of_another_shape_is_told_what_it_must_hold(path: Path, text: str) -> None:
    assert "must hold keys" in refusal(path, text)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f'a: 1\nserver_settings:\n  worker_token: "{SECRET}\n', "line"),
        (f"server_settings: {{worker_token: {SECRET}, }}}}\n", "line 1"),
        (f"server_settings:\n  worker_token: {SECRET}: x\n", "line 2"),
        (f"server_settings:\n  worker_token: *{SECRET}\n", "line 2"),
        (f"server_settings:\n  worker_token: !{SECRET} x\n", "line 2"),
        ("server_settings:\n\tport: 1\n", "line 2"),
        ("a: \x00\n", "#x0000"),
        (
            "litellm_settings: {}\nserver_settings: {}\nlitellm_settings: {}\n",
            "line 3, column 1: the key litellm_settings",
        ),
        ("server_settings:\n  port: 1\n  port: 2\n", "line 3, column 3: the key port is there twice"),
    ],
)
def test_broken_yaml_is_shown_by_its_place_and_not_by_its_text(path: Path, text: str, line: str) -> None:
    words = refusal(path, text)
    assert words.startswith(f"{path} is not valid YAML: ")
    assert line in words
    assert SECRET not in words
    assert "\n" not in words


@pytest.mark.parametrize(
    ("text", "where", "nearest"),
    [
        ("server_setings: {}", "unknown key 'server_setings'", "server_settings"),
        ("server_settings: {prot: 1}", "server_settings: unknown key 'prot'", "port"),
        ("server_settings: {keys: [{naem: a}]}", "server_settings.keys.0: unknown key 'naem'", "name"),
        ("engines: {vllm: {pyhton: x}}", "engines.vllm: unknown key 'pyhton'", "python"),
        ("managed_workers: [{model_name: m, model_path: o/m, prot: 1}]", "unknown key 'prot'", "port"),
    ],
)
def test_a_mistyped_key_is_named_with_the_nearest(path: Path, text: str, where: str, nearest: str) -> None:
    words = refusal(path, text)
    assert where in words
    assert f"did you mean {nearest}" in words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("routing: {models: {a: session}}", "routing.models.a: this has to be a mapping: {key: value}"),
        ("litellm_settings: {fallbacks: {a: [b]}}", "fallbacks: this has to be a list: [item, item]"),
        ("managed_workers: {port: 1}", "managed_workers: this has to be a list: [item, item]"),
    ],
)
def test_a_value_of_the_wrong_shape_is_told_so_in_plain_words(path: Path, text: str, words: str) -> None:
    assert words in refusal(path, text)


def test_a_key_like_no_other_is_to_be_removed(path: Path) -> None:
    assert refusal(path, "zzzzzz: 1") == f"{path}: unknown key 'zzzzzz': remove it"


def test_all_mistakes_are_told_at_once_a_line_each(path: Path) -> None:
    lines = refusal(path, "server_settings: {port: x, max_attempts: 0}\nmanaged_workers: [{port: 1}]\n").splitlines()
    assert len(lines) == 4
    assert all(line.startswith(f"{path}: ") for line in lines)


def test_a_missing_model_folder_is_named(path: Path) -> None:
    worker = "managed_workers: [{model_name: m, model_path: /no/such/folder, port: 8001}]"
    assert "model_path '/no/such/folder' does not exist" in refusal(path, worker)


@pytest.mark.parametrize("key", ["admin_key_hash", "worker_token", "keys", "port"])
def test_a_wrong_value_is_never_repeated(path: Path, key: str) -> None:
    words = refusal(path, f"server_settings: {{{key}: [{SECRET}]}}")
    assert f"server_settings.{key}" in words
    assert SECRET not in words


def test_yaml_may_share_and_override_parts(path: Path) -> None:
    text = """
managed_workers:
  - &first {model_name: m, model_path: o/m, port: 8001, env: {A: b}}
  - {<<: *first, port: 8002}
"""
    first, second = load(path, text).managed_workers
    assert (second.port, second.env) == (8002, first.env)


# -- the environment -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "port", "level"),
    [
        ({}, 5000, "info"),
        ({"ICHAT_SERVER_SETTINGS__PORT": "4001"}, 4001, "info"),
        ({"ICHAT_SERVER_SETTINGS__LOG_LEVEL": "debug"}, 5000, "debug"),
        ({"ICHAT_SERVER_SETTINGS": "{port: 4002, log_level: error}"}, 4002, "error"),
        ({"ICHAT_WORKER_TOKEN": "x", "PATH": "/bin", "ICHAT_MANAGED_WORKER_ID": "w"}, 5000, "info"),
    ],
)
def test_the_environment_stands_over_the_file(path: Path, environ: dict[str, str], port: int, level: str) -> None:
    own = load(path, "server_settings: {port: 5000}", environ).server_settings
    assert (own.port, own.log_level) == (port, level)


def test_the_environment_holds_whole_lists_and_deep_keys(path: Path) -> None:
    environ = {
        "ICHAT_MANAGED_WORKERS": "[{model_name: m, model_path: o/m, port: 8001}]",
        "ICHAT_ENGINES__VLLM__PYTHON": "/opt/vllm/bin/python",
        "ICHAT_LITELLM_SETTINGS__DROP_PARAMS": "true",
    }
    settings = load(path, "", environ)
    assert settings.managed_workers[0].port == 8001
    assert settings.engines["vllm"].python == "/opt/vllm/bin/python"
    assert settings.litellm_settings.drop_params is True


@pytest.mark.parametrize("token", ["abc#def", "#abc", "*abc", "&abc", "!abc", "%abc", "@abc", "a:b", "2026-01-01", "-"])
def test_a_secret_in_the_environment_is_taken_as_it_stands(path: Path, token: str) -> None:
    settings = load(path, "", {"ICHAT_SERVER_SETTINGS__WORKER_TOKEN": token})
    assert settings.server_settings.worker_token is not None
    assert settings.server_settings.worker_token.get_secret_value() == token


def test_quotes_make_a_number_in_the_environment_text(path: Path) -> None:
    settings = load(path, "", {"ICHAT_SERVER_SETTINGS__WORKER_TOKEN": "'12345'"})
    assert settings.server_settings.worker_token is not None
    assert settings.server_settings.worker_token.get_secret_value() == "12345"


def test_null_in_the_environment_takes_a_value_back(path: Path) -> None:
    settings = load(path, "server_settings: {worker_token: x}", {"ICHAT_SERVER_SETTINGS__WORKER_TOKEN": "null"})
    assert settings.server_settings.worker_token is None


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ICHAT_SERVER_SETINGS__PORT", "1", "did you mean server_settings"),
        ("ICHAT_SERVER_SETTINGS_PORT", "1", "two underscores"),
        ("ICHAT_SERVER_SETTINGS__PROT", "1", "did you mean port"),
        ("ICHAT_SERVER_SETTINGS__PORT", "x", "server_settings.port"),
        ("ICHAT_SERVER_SETTINGS__KEYS", "[{}]", "server_settings.keys.0.name"),
        ("ICHAT_SERVER_SETTINGS__KEYS", "[", "is not valid YAML"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(path: Path, name: str, value: str, words: str) -> None:
    refused = refusal(path, "", {name: value})
    assert f"environment: {name}" in refused
    assert words in refused
    assert str(path) not in refused


@pytest.mark.parametrize("value", [f'"{SECRET}', f"[{SECRET}", f"two words {SECRET}", "''"])
def test_a_wrong_secret_in_the_environment_is_not_repeated(path: Path, value: str) -> None:
    words = refusal(path, "", {"ICHAT_SERVER_SETTINGS__WORKER_TOKEN": value})
    assert "ICHAT_SERVER_SETTINGS__WORKER_TOKEN" in words
    assert SECRET not in words


# -- references ----------------------------------------------------------------------------------------------------

REFERENCE = "server_settings: {worker_token: os.environ/MY_TOKEN}"


def test_a_reference_is_replaced_by_the_variable(path: Path) -> None:
    settings = load(path, REFERENCE, {"MY_TOKEN": SECRET})
    assert settings.server_settings.worker_token is not None
    assert settings.server_settings.worker_token.get_secret_value() == SECRET


def test_references_are_found_at_every_depth(path: Path) -> None:
    text = """
managed_workers:
  - {model_name: m, model_path: o/m, port: os.environ/PORT, aliases: [os.environ/ALIAS], env: {TOKEN: os.environ/T}}
"""
    [worker] = load(path, text, {"PORT": "8001", "ALIAS": "a", "T": "t"}).managed_workers
    assert (worker.port, worker.aliases, worker.env) == (8001, ("a",), {"TOKEN": "t"})


def test_a_reference_to_nothing_names_key_and_variable(path: Path) -> None:
    words = refusal(path, REFERENCE)
    assert "server_settings.worker_token" in words
    assert "set MY_TOKEN" in words


def test_an_empty_secret_does_not_open_the_door(path: Path) -> None:
    assert "server_settings.worker_token" in refusal(path, REFERENCE, {"MY_TOKEN": ""})
