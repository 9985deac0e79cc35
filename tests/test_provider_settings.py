"""LiteLLM's sections of config.yaml: what its own documentation shows loads, and does what it says or is named."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from config.load import load_settings
from config.providers import ProviderSettings, without_effect
from config.settings import GatewaySettings
from utils.errors import ConfigError

SECRET = "sk-s3cret-of-mine"
DOCUMENTED = """
model_list:
  - model_name: gpt-4o
    litellm_params:
      model: azure/gpt-4o-eu
      api_base: https://my-endpoint-europe.example.com/
      api_key: os.environ/AZURE_API_KEY_EU
      api_version: "2024-08-01-preview"
      rpm: 6
  - model_name: gpt-4o
    litellm_params:
      model: azure/gpt-4o-ca
      api_base: https://my-endpoint-canada.example.com/
      api_key: os.environ/AZURE_API_KEY_CA
      rpm: 6
    model_info: {id: canada, base_model: azure/gpt-4o}
  - model_name: claude
    litellm_params: {model: anthropic/claude-sonnet-4-5, api_key: os.environ/ANTHROPIC_API_KEY}
  - model_name: my-vllm
    litellm_params: {model: hosted_vllm/facebook/opt-125m, api_base: http://localhost:8000/v1, tags: [free]}
  - model_name: "openai/*"
    litellm_params: {model: "openai/*", api_key: os.environ/OPENAI_API_KEY}

litellm_settings:
  drop_params: True
  num_retries: 3
  request_timeout: 10
  fallbacks: [{"gpt-4o": ["claude", "my-vllm"]}]
  context_window_fallbacks: [{"gpt-4o": ["claude"]}]
  content_policy_fallbacks: [{"gpt-4o": ["claude"]}]
  default_fallbacks: ["my-vllm"]
  allowed_fails: 3
  cache: True
  cache_params: {type: redis, password: os.environ/REDIS_PASSWORD}
  success_callback: ["langfuse"]
  set_verbose: False

router_settings:
  routing_strategy: usage-based-routing-v2
  model_group_alias: {"gpt-4": "gpt-4o", "secret": {"model": "gpt-4o", "hidden": true}}
  redis_host: os.environ/REDIS_HOST
  redis_password: os.environ/REDIS_PASSWORD
  redis_port: 1992
  num_retries: 2
  timeout: 30
  enable_pre_call_checks: true
  retry_policy: {BadRequestErrorRetries: 0, RateLimitErrorRetries: 3}

environment_variables:
  ANTHROPIC_API_KEY: ANTHROPIC
  REDIS_HOST: redis.example.com

general_settings:
  master_key: os.environ/MASTER_KEY
  database_url: os.environ/DATABASE_URL
  alerting: ["slack"]
"""
ENVIRON = {"AZURE_API_KEY_EU": f"{SECRET}-eu", "AZURE_API_KEY_CA": f"{SECRET}-ca", "OPENAI_API_KEY": f"{SECRET}-oa",
           "MASTER_KEY": f"{SECRET}-master"}  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def load(path: Path, text: str, environ: Mapping[str, str]) -> GatewaySettings:
    path.write_text(text)
    return load_settings(path, environ)


def refusal(**sections: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        GatewaySettings.model_validate(sections)
    return str(caught.value)


def deployment(**params: Any) -> dict[str, Any]:
    return {"model_name": "m", "litellm_params": {"model": "openai/m", **params}}


def test_a_file_of_litellms_documentation_loads(path: Path) -> None:
    settings = load(path, DOCUMENTED, ENVIRON)
    assert [entry.model_name for entry in settings.model_list] == ["gpt-4o", "gpt-4o", "claude", "my-vllm", "openai/*"]
    assert settings.model_list[0].litellm_params["api_key"] == f"{SECRET}-eu"
    assert settings.model_list[3].litellm_params["tags"] == ["free"]
    assert settings.litellm_settings.fallbacks == ({"gpt-4o": ("claude", "my-vllm")},)
    assert settings.router_settings.routing_strategy == "usage-based-routing-v2"
    assert settings.router_settings.for_router == {
        "enable_pre_call_checks": True,
        "retry_policy": {"BadRequestErrorRetries": 0, "RateLimitErrorRetries": 3},
    }


def test_environment_variables_of_the_file_can_be_referred_to(path: Path) -> None:
    settings = load(path, DOCUMENTED, ENVIRON)
    assert settings.model_list[2].litellm_params["api_key"] == "ANTHROPIC"
    real = load(path, DOCUMENTED, {**ENVIRON, "ANTHROPIC_API_KEY": "real"})
    assert real.model_list[2].litellm_params["api_key"] == "real"


def test_what_does_nothing_here_is_named_with_its_reason(path: Path) -> None:
    lines = without_effect(load(path, DOCUMENTED, ENVIRON).providers)
    assert [line.partition(" ")[0] for line in lines] == [
        "litellm_settings.cache", "litellm_settings.cache_params", "litellm_settings.success_callback",
        "router_settings.redis_host", "router_settings.redis_password", "router_settings.redis_port",
        "general_settings.database_url", "general_settings.alerting",
    ]  # fmt: skip
    assert "no database" in lines[6]
    assert SECRET not in str(lines)


def test_a_mistyped_key_is_named_with_the_one_that_is_meant() -> None:
    settings = ProviderSettings.model_validate({"router_settings": {"num_retrys": 1}})
    assert without_effect(settings) == ["router_settings.num_retrys has no effect: did you mean num_retries?"]


def test_the_master_key_becomes_a_clients_and_the_admins_hash(path: Path) -> None:
    settings = load(path, DOCUMENTED, ENVIRON)
    hashed = "sha256:" + hashlib.sha256(f"{SECRET}-master".encode()).hexdigest()
    [key] = settings.server_settings.keys
    assert (key.name, key.hash) == ("master_key", hashed)
    assert settings.server_settings.admin_key_hash == hashed


def test_the_master_key_comes_beside_other_keys_and_takes_no_admins_place() -> None:
    other = "sha256:" + "0" * 64
    settings = GatewaySettings.model_validate(
        {
            "general_settings": {"master_key": SECRET},
            "server_settings": {"keys": [{"name": "alice", "hash": other}], "admin_key_hash": other},
        }
    )
    assert [key.name for key in settings.server_settings.keys] == ["alice", "master_key"]
    assert settings.server_settings.admin_key_hash == other


@pytest.mark.parametrize("value", ["", "two words", 7, ["x"]])
def test_a_master_key_that_is_none_does_not_leave_the_door_open(value: Any) -> None:
    assert "general_settings.master_key" in refusal(general_settings={"master_key": value})


def test_no_secret_is_shown(path: Path) -> None:
    settings = load(path, DOCUMENTED, ENVIRON)
    assert SECRET not in repr(settings)
    assert SECRET not in repr(settings.providers)
    assert settings.providers.secrets() >= {f"{SECRET}-eu", f"{SECRET}-ca", f"{SECRET}-oa", "ANTHROPIC"}


def test_secrets_are_found_by_their_keys_at_every_depth() -> None:
    params = {"aws_secret_access_key": "secret-1", "extra_headers": {"Authorization": "secret-2"},
              "vertex_credentials": {"private": ["secret-3"]}, "api_base": "http://public"}  # fmt: skip
    settings = ProviderSettings.model_validate({"model_list": [deployment(**params)]})
    assert settings.secrets() == {"secret-1", "secret-2", "secret-3"}


def test_a_variable_that_a_model_needs_and_is_not_set_is_named(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model_list\.0\.litellm_params\.api_key.*set AZURE_API_KEY_EU"):
        load(path, DOCUMENTED, {"MASTER_KEY": "x"})


def test_a_master_key_that_is_not_set_is_named(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"general_settings\.master_key.*set MASTER_KEY"):
        load(path, DOCUMENTED, {name: value for name, value in ENVIRON.items() if name != "MASTER_KEY"})


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"model_list": [{"litellm_params": {"model": "openai/m"}}]}, "model_list.0.model_name"),
        ({"model_list": [{"model_name": "m"}]}, "model_list.0.litellm_params"),
        ({"model_list": [{"model_name": "m", "litellm_params": {"api_key": SECRET}}]}, "model is missing"),
        ({"model_list": [{**deployment(api_key=SECRET), "litelm_params": {}}]}, "model_list.0.litelm_params"),
        ({"litellm_settings": {"fallbacks": {"a": ["b"]}}}, "litellm_settings.fallbacks"),
        ({"litellm_settings": {"fallbacks": [{"a": "b"}]}}, "litellm_settings.fallbacks.0.a"),
        ({"litellm_settings": {"num_retries": -1}}, "litellm_settings.num_retries"),
        ({"router_settings": {"routing_strategy": "best"}}, "router_settings.routing_strategy"),
        ({"environment_variables": {"A": [SECRET]}}, "environment_variables.A"),
    ],
)
def test_a_wrong_value_is_named_and_not_repeated(sections: dict[str, Any], where: str) -> None:
    words = refusal(**sections)
    assert where in words
    assert SECRET not in words


@pytest.mark.parametrize("section", ["model_list", "litellm_settings", "router_settings", "general_settings",
                                     "environment_variables"])  # fmt: skip
def test_an_empty_section_is_the_same_as_none(section: str) -> None:
    assert GatewaySettings.model_validate({section: None}) == GatewaySettings()
