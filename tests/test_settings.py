"""The gateway's settings: what is taken, what is refused, and in which words."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from config.settings import GatewaySettings, ManagedWorker, ServerSettings, require_unique

HASH = "sha256:" + "0" * 64


def managed(**more: Any) -> dict[str, Any]:
    return {"model_name": "m", "model_path": "org/m", "port": 8001, **more}


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        GatewaySettings.model_validate(values)
    return str(caught.value)


def test_nothing_at_all_is_a_gateway_with_defaults() -> None:
    settings = GatewaySettings.model_validate({})
    assert settings.server_settings.port == 4000
    assert settings.managed_workers == ()


@pytest.mark.parametrize("section", ["server_settings", "managed_workers", "engines", "litellm_settings"])
def test_an_empty_section_is_the_same_as_none(section: str) -> None:
    assert GatewaySettings.model_validate({section: None}) == GatewaySettings()


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError):
        GatewaySettings().server_settings.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("port", 65536), ("port", -1), ("port", "http"), ("log_level", "loud"), ("max_body_mb", 0),
        ("body_timeout_s", 0), ("answer_timeout_s", -1), ("drain_timeout_s", float("inf")), ("max_attempts", 0),
        ("probe_interval_s", 0), ("admin_key_hash", "secret"), ("keys", [{"name": "a b", "hash": HASH}]),
        ("keys", [{"name": "a", "hash": "sk-1234"}]), ("worker_token", ""), ("worker_token", "two words"),
        ("worker_token", "schlüssel"), ("otel_endpoint", ""), ("otel_endpoint", "127.0.0.1:4318/v1/traces"),
        ("otel_endpoint", "grpc://a/v1/traces"), ("otel_endpoint", "http:///v1/traces"), ("otel_endpoint", 4318),
        ("otel_endpoint", "http://a:99999/v1/traces"), ("otel_endpoint", "http://a b/v1/traces"),
        ("otel_endpoint", "http://a:4318"), ("otel_endpoint", "http://a:4318/"),
        ("otel_endpoint", "http://me:secret@a/v1/traces"), ("otel_endpoint", "https://a/v1/traces?key=secret"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_its_key_and_not_repeated(key: str, value: Any) -> None:
    words = refusal({"server_settings": {key: value}})
    assert f"server_settings.{key}" in words
    assert "secret" not in words
    assert "sk-1234" not in words
    assert "schlüssel" not in words


@pytest.mark.parametrize("url", ["http://127.0.0.1:4318/v1/traces", "https://a.b/otlp", "http://[::1]:4318/v1/traces"])
def test_a_collectors_address_is_taken_as_it_is(url: str) -> None:
    assert ServerSettings(otel_endpoint=url).otel_endpoint == url


def test_the_log_level_may_be_written_large() -> None:
    assert ServerSettings.model_validate({"log_level": "DEBUG"}).log_level == "debug"


def test_megabytes_are_counted_in_bytes() -> None:
    assert ServerSettings(max_body_mb=0.5).max_body_bytes == 512 * 1024


def test_the_worker_token_is_not_shown() -> None:
    settings = ServerSettings.model_validate({"worker_token": "s3cret#1"})
    assert "s3cret" not in repr(settings)
    assert settings.worker_token is not None
    assert settings.worker_token.get_secret_value() == "s3cret#1"


@pytest.mark.parametrize(("second", "what"), [({"name": "a", "hash": HASH[:-1] + "1"}, "name"),
                                              ({"name": "b", "hash": HASH}, "hash")])  # fmt: skip
def test_two_clients_share_neither_name_nor_key(second: dict[str, str], what: str) -> None:
    words = refusal({"server_settings": {"keys": [{"name": "a", "hash": HASH}, second]}})
    assert f"{what} " in words
    assert "used twice" in words


# -- managed workers -----------------------------------------------------------------------------------------------


def test_unified_arguments_stand_beside_the_workers_own_keys() -> None:
    worker = ManagedWorker.model_validate(managed(tensor_parallel_size=2, max_model_len=2048))
    assert worker.engine_arguments == {"tensor_parallel_size": 2, "max_model_len": 2048}


def test_a_workers_own_words_on_media_may_be_written_too() -> None:
    worker = ManagedWorker.model_validate(managed(allowed_media_domains=["a.b"], allowed_local_media_path="/media"))
    assert worker.engine_arguments == {"allowed_media_domains": ["a.b"], "allowed_local_media_path": "/media"}


def test_backend_args_win_over_unified_ones() -> None:
    worker = ManagedWorker.model_validate(managed(seed=1, backend_args={"seed": 2, "max_lora_rank": 8}))
    assert worker.engine_arguments == {"seed": 2, "max_lora_rank": 8}


def test_a_mistyped_argument_is_refused_with_the_nearest_and_the_place_for_others() -> None:
    words = refusal({"managed_workers": [managed(tensor_paralel_size=2)]})
    assert "tensor_paralel_size" in words
    assert "did you mean tensor_parallel_size" in words
    assert "backend_args" in words


@pytest.mark.parametrize("key", ["port", "host", "--port", "served-model-name", "worker_id", "model"])
def test_backend_args_cannot_say_again_what_the_gateway_says(key: str) -> None:
    words = refusal({"managed_workers": [managed(backend_args={key: "x"})]})
    assert "backend_args" in words
    assert repr(key) in words


@pytest.mark.parametrize(
    ("key", "value"),
    [("model_name", "a b"), ("model_name", ""), ("model_path", ""), ("port", 0), ("host", "a b"),
     ("host", "[::1]"), ("gpu_ids", [-1]),
     ("backend", "../evil"), ("worker_id", "a/b"), ("aliases", ["a b"]), ("heartbeat_interval", 0),
     ("start_timeout_s", 0), ("env", {"A": [1]}), ("backend_args", [1])],
)  # fmt: skip
def test_a_wrong_value_of_a_worker_is_refused_by_its_place(key: str, value: Any) -> None:
    assert f"managed_workers.0.{key}" in refusal({"managed_workers": [managed(**{key: value})]})


@pytest.mark.parametrize("key", ["model_name", "model_path", "port"])
def test_a_worker_needs_a_model_and_a_port(key: str) -> None:
    worker = managed()
    del worker[key]
    assert f"managed_workers.0.{key}" in refusal({"managed_workers": [worker]})


def test_two_workers_cannot_share_a_port() -> None:
    words = refusal({"managed_workers": [managed(), managed(model_name="n")]})
    assert "port 8001" in words


def test_two_workers_cannot_share_an_id() -> None:
    words = refusal({"managed_workers": [managed(worker_id="w"), managed(worker_id="w", port=8002)]})
    assert "worker_id 'w'" in words


def test_the_gateways_port_is_not_a_workers() -> None:
    words = refusal({"server_settings": {"port": 8001}, "managed_workers": [managed()]})
    assert "8001" in words
    assert "server_settings.port" in words


def test_replicas_of_a_model_have_ids_of_their_own() -> None:
    settings = GatewaySettings.model_validate({"managed_workers": [managed(), managed(port=8002)]})
    first, second = settings.managed_workers
    assert first.id != second.id


@pytest.mark.parametrize("aliases", [["m"], ["a", "a"]])
def test_an_alias_is_another_name(aliases: list[str]) -> None:
    assert "names itself twice" in refusal({"managed_workers": [managed(aliases=aliases)]})


def test_numbers_in_the_environment_are_meant_as_text() -> None:
    worker = ManagedWorker.model_validate(managed(env={"OMP_NUM_THREADS": 2, "SCALE": 0.5, "NAME": "x"}))
    assert worker.env == {"OMP_NUM_THREADS": "2", "SCALE": "0.5", "NAME": "x"}


# -- paths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/no/such/folder", "./no-such-folder", "~/no-such-folder", "../no-such-folder"])
def test_a_folder_that_is_not_there_is_found_missing(path: str) -> None:
    settings = GatewaySettings.model_validate({"managed_workers": [managed(model_path=path)]})
    assert len(settings.missing_model_paths()) == 1


def test_a_hub_id_and_a_folder_that_is_there_are_not_missing(tmp_path: Path) -> None:
    workers = [managed(model_path=str(tmp_path)), managed(port=8002, model_path="org/model")]
    assert GatewaySettings.model_validate({"managed_workers": workers}).missing_model_paths() == []


def test_the_fake_engine_needs_no_folder() -> None:
    worker = managed(backend="fake", model_path="/no/such/folder")
    assert GatewaySettings.model_validate({"managed_workers": [worker]}).missing_model_paths() == []


@pytest.mark.parametrize(("path", "expected"), [("./models/m", Path.cwd() / "models/m"), ("~/m", Path.home() / "m")])
def test_a_path_means_what_it_means_to_the_gateway(path: str, expected: Path) -> None:
    """A worker runs in another folder, and no shell expands a tilde for it."""
    assert ManagedWorker.model_validate(managed(model_path=path)).model_path == str(expected)
    engines = GatewaySettings.model_validate({"engines": {"vllm": {"python": path}}}).engines
    assert engines["vllm"].python == str(expected)


def test_a_hub_id_and_a_program_on_the_path_stay_as_they_are() -> None:
    assert ManagedWorker.model_validate(managed()).model_path == "org/m"
    engines = GatewaySettings.model_validate({"engines": {"vllm": {"python": "python3"}}}).engines
    assert engines["vllm"].python == "python3"


def test_the_home_of_nobody_is_refused() -> None:
    assert "model_path" in refusal({"managed_workers": [managed(model_path="~no-such-user-here/m")]})


def test_ten_thousand_keys_are_not_each_held_against_all_others() -> None:
    class Name(str):
        compared = 0

        def __eq__(self, other: object) -> bool:
            Name.compared += 1
            return super().__eq__(other)

        __hash__ = str.__hash__

    names = [Name(f"key {number}") for number in range(1000)]
    require_unique("keys", "name", names)
    assert Name.compared < 1000
    with pytest.raises(ValueError, match="'key 7' is used twice"):
        require_unique("keys", "name", [*names, Name("key 7")])
