"""The command line and environment of a managed worker."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.args import TOKEN_VARIABLE, parse_worker_arguments
from config.settings import ManagedWorker
from config.unified import UNIFIED_ARGUMENTS, to_argv
from fleet.command import FINGERPRINT_VARIABLE, ID_VARIABLE, worker_argv, worker_env
from tests.doubles import PATIENT

TOKEN = "s3cret-of-mine"


def managed(**more: Any) -> ManagedWorker:
    return ManagedWorker.model_validate({"model_name": "m", "model_path": "org/m", "port": 8001, **more})


def argv_of(worker: ManagedWorker) -> list[str]:
    return worker_argv(worker, "python3", Path("/app/serve.py"), "http://127.0.0.1:4000", 12.5, 0.25)


def env_of(worker: ManagedWorker, environ: dict[str, str] | None = None, token: str = "") -> dict[str, str]:
    return worker_env(worker, argv_of(worker), environ or {}, token=token)


def test_a_worker_is_serve_py_run_by_its_engines_python() -> None:
    assert argv_of(managed())[:2] == ["python3", "/app/serve.py"]


values = st.integers() | st.booleans() | st.text(min_size=1) | st.lists(st.integers(), min_size=1, max_size=3)


@PATIENT
@given(
    st.dictionaries(st.sampled_from(sorted(UNIFIED_ARGUMENTS)), values, max_size=4),
    st.lists(st.sampled_from(["a", "b/c", "模型"]), unique=True),
)
def test_a_worker_reads_from_its_command_line_what_was_configured(given_: dict[str, Any], aliases: list[str]) -> None:
    worker = managed(aliases=aliases, backend="fake", worker_id="w@1", heartbeat_interval=2.5, **given_)
    arguments = parse_worker_arguments(argv_of(worker)[2:], {})
    assert arguments.model == "org/m"
    assert arguments.names == ("m", *aliases)
    assert (arguments.backend, arguments.host, arguments.port) == ("fake", "127.0.0.1", 8001)
    assert (arguments.worker_id, arguments.gateway_address) == ("w@1", "http://127.0.0.1:4000")
    assert (arguments.heartbeat_interval, arguments.drain_timeout) == (2.5, 12.5)
    assert arguments.max_body_mb == 0.25
    assert list(arguments.engine_argv) == to_argv(given_)


def test_words_for_a_shell_stay_words() -> None:
    argv = argv_of(managed(chat_template="$(touch /tmp/x); `id` && 'a b'"))
    assert argv[-2:] == ["--chat-template", "$(touch /tmp/x); `id` && 'a b'"]


# -- the environment -----------------------------------------------------------------------------------------------


def test_a_worker_sees_its_gpus_by_the_numbers_of_nvidia_smi() -> None:
    env = env_of(managed(gpu_ids=[2, 0]), {"CUDA_VISIBLE_DEVICES": "7"})
    assert env["CUDA_VISIBLE_DEVICES"] == "2,0"
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_no_gpus_named_is_what_the_gateway_sees_and_an_empty_list_is_none() -> None:
    assert env_of(managed(), {"CUDA_VISIBLE_DEVICES": "7"})["CUDA_VISIBLE_DEVICES"] == "7"
    assert env_of(managed(gpu_ids=[]), {"CUDA_VISIBLE_DEVICES": "7"})["CUDA_VISIBLE_DEVICES"] == ""


def test_the_workers_own_variables_stand_over_the_gateways() -> None:
    env = env_of(managed(env={"A": "own", "B": "b"}), {"A": "gateway", "PATH": "/bin"})
    assert (env["A"], env["B"], env["PATH"]) == ("own", "b", "/bin")


def test_the_gateways_own_settings_are_not_handed_down() -> None:
    environ = {"ICHAT_SERVER_SETTINGS__ADMIN_KEY_HASH": "x", TOKEN_VARIABLE: "another", ID_VARIABLE: "parent"}
    env = env_of(managed(), environ)
    assert env[ID_VARIABLE] == managed().id
    assert "x" not in env.values()
    assert TOKEN_VARIABLE not in env


def test_the_token_is_in_the_environment_and_never_on_the_command_line() -> None:
    worker = managed()
    assert env_of(worker, token=TOKEN)[TOKEN_VARIABLE] == TOKEN
    assert TOKEN not in " ".join(argv_of(worker))


# -- the fingerprint -----------------------------------------------------------------------------------------------


def fingerprint(worker: ManagedWorker, environ: dict[str, str] | None = None, token: str = "") -> str:
    return env_of(worker, environ, token)[FINGERPRINT_VARIABLE]


def test_the_same_worker_has_the_same_fingerprint_in_another_life_of_the_gateway() -> None:
    assert fingerprint(managed(), {"A": "1"}) == fingerprint(managed(), {"A": "2"})


@pytest.mark.parametrize(
    "change",
    [{"max_model_len": 1}, {"env": {"A": "1"}}, {"gpu_ids": [0]}, {"gpu_ids": []}, {"aliases": ["a"]}, {"port": 8002},
     {"backend_args": {"x": 1}}, {"model_path": "org/n"}, {"heartbeat_interval": 4}],
)  # fmt: skip
def test_whatever_changes_the_worker_changes_its_fingerprint(change: dict[str, Any]) -> None:
    assert fingerprint(managed(**change)) != fingerprint(managed())


def test_a_new_token_changes_the_fingerprint_which_does_not_tell_it() -> None:
    assert fingerprint(managed(), token=TOKEN) != fingerprint(managed())
    assert TOKEN not in fingerprint(managed(), token=TOKEN)
