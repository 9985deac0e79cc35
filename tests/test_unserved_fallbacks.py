"""Fallbacks to names that nothing in the configuration serves are told at the start."""

import random
from typing import Any

import pytest

from config.settings import GatewaySettings, ServerSettings
from gateway import Gateway
from relay.providers.unserved import unserved_fallbacks
from tests.doubles import logged

MODELS = [
    {"model_name": "gpt-4o", "litellm_params": {"model": "openai/gpt-4o"}},
    {"model_name": "claude/*", "litellm_params": {"model": "anthropic/*"}},
]
WORKERS = [
    {"model_name": "qwen", "model_path": "org/qwen", "port": 8001, "aliases": ["small"],
     "lora_modules": ["tuned=/x", {"name": "styled", "path": "/y"}]},
]  # fmt: skip


def settings(section: str = "litellm_settings", **fallbacks: Any) -> GatewaySettings:
    return GatewaySettings.model_validate(
        {"model_list": MODELS, "managed_workers": WORKERS, "server_settings": {"host": "127.0.0.1", "port": 0},
         "router_settings": {"model_group_alias": {"best": "gpt-4o"}}} | {section: fallbacks}
    )  # fmt: skip


@pytest.mark.parametrize("name", ["gpt-4o", "claude/opus", "qwen", "small", "tuned", "styled", "best"])
def test_what_the_configuration_serves_is_not_told(name: str) -> None:
    assert unserved_fallbacks(settings(fallbacks=[{"unknown": [name]}])) == {}


@pytest.mark.parametrize(
    "tables",
    [
        {"fallbacks": [{"qwen": ["gtp-4o"]}]},
        {"context_window_fallbacks": [{"qwen": ["gpt-4o", "gtp-4o"]}]},
        {"content_policy_fallbacks": [{"qwen": ["gtp-4o"]}]},
        {"default_fallbacks": ["gtp-4o"]},
    ],
)
@pytest.mark.parametrize("section", ["litellm_settings", "router_settings"])
def test_a_mistyped_name_is_told_with_the_one_that_is_meant(section: str, tables: dict[str, Any]) -> None:
    [(name, why)] = unserved_fallbacks(settings(section, **tables)).items()
    assert name == "gtp-4o"
    assert "did you mean gpt-4o?" in why


@pytest.mark.parametrize("name", ["zzz", "claude/", "claude-opus"])
def test_without_a_near_name_or_a_matching_wildcard_none_is_suggested(name: str) -> None:
    [why] = unserved_fallbacks(settings(fallbacks=[{"qwen": [name]}])).values()
    assert "did you mean" not in why


@pytest.mark.anyio
async def test_each_is_one_warning_at_the_start() -> None:
    tables = {"fallbacks": [{"*": ["gtp-4o", "zzz"]}, {"b": ["zzz"]}], "context_window_fallbacks": [{"b": ["zzz"]}]}
    given = GatewaySettings.model_validate(
        {"server_settings": ServerSettings(host="127.0.0.1", port=0), "litellm_settings": tables}
    )
    gateway = Gateway(given, random.Random(1))
    with logged() as events:
        gateway.stop()
        await gateway.run()
    told = [record.__dict__["values"]["model"] for record in events.named("fallback_unserved")]
    assert told == ["gtp-4o", "zzz"]
