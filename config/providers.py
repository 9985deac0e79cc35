"""The sections of config.yaml that are LiteLLM's, by its own names: models that no worker of ours serves.

https://docs.litellm.ai/docs/proxy/configs and https://docs.litellm.ai/docs/proxy/config_settings explain the keys.
What LiteLLM takes and iChat has no use for is not refused, so that a LiteLLM user's file loads: ``without_effect`` says
it, for the gateway's log.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from config.fields import Frozen, Seconds

ModelName = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f]+$")]
FallbackTable = tuple[dict[ModelName, tuple[ModelName, ...]], ...]
"""``[{model: [first, second]}]``, as LiteLLM writes it."""
Count = Annotated[int, Field(ge=0)]
Strategy = Literal[
    "simple-shuffle", "least-busy", "usage-based-routing", "usage-based-routing-v2", "latency-based-routing",
    "cost-based-routing",
]  # fmt: skip

WHY_NOT: Final[Mapping[str, str]] = {
    "litellm_settings.cache": "no answer is kept, which might be another client's; engines cache what prompts share",
    "litellm_settings.callbacks": "iChat has logs and metrics of its own",
    "litellm_settings.success_callback": "iChat has logs and metrics of its own",
    "litellm_settings.failure_callback": "iChat has logs and metrics of its own",
    "litellm_settings.set_verbose": "server_settings.log_level is iChat's",
    "router_settings.redis_host": "one gateway keeps the state of its providers in memory",
    "router_settings.redis_url": "one gateway keeps the state of its providers in memory",
    "general_settings.database_url": "iChat has no database: clients' keys are in server_settings.keys",
}
"""Why a key that many files have does nothing here."""
ROUTER_KEYS: Final = frozenset(
    {
        "allowed_fails_policy", "cooldown_time", "default_litellm_params", "default_max_parallel_requests",
        "deployment_affinity_ttl_seconds", "disable_cooldowns", "enable_pre_call_checks", "enable_tag_filtering",
        "enable_weighted_failover", "model_group_retry_policy", "optional_pre_call_checks", "provider_budget_config",
        "retry_after", "retry_policy", "routing_strategy_args", "tag_filtering_match_any",
    }
)  # fmt: skip
"""What ``litellm.Router`` takes beside the fields of RouterSettings, as it is."""


def is_secret(key: str) -> bool:
    """Whether what stands below this key of ``litellm_params`` is not to be shown."""
    words = ("key", "secret", "token", "password", "credential", "authorization", "header", "cookie")
    return any(word in key.lower() for word in words) and "max_tokens" not in key.lower()


def texts_below(value: Any) -> Iterator[str]:
    """All texts in a value of lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts_below(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_below(item)


class Deployment(Frozen):
    """One entry of ``model_list``: several with one ``model_name`` share its requests."""

    model_name: ModelName
    litellm_params: dict[str, Any] = Field(repr=False)
    """``model`` (``provider/name``), ``api_base``, ``api_key``, and whatever LiteLLM and the provider take."""
    model_info: dict[str, Any] = Field({})

    @field_validator("litellm_params")
    @classmethod
    def _a_model_is_named(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("model"), str) or not value["model"]:
            raise ValueError("model is missing: name provider and model, such as openai/gpt-4o")
        return value

    def secrets(self) -> Iterator[str]:
        """The values that must never be shown."""
        for key, value in self.litellm_params.items():
            if is_secret(key):
                yield from texts_below(value)


class _Section(BaseModel):
    """A section that may hold keys which mean nothing here."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True, allow_inf_nan=False)

    @property
    def extra(self) -> dict[str, Any]:
        return self.model_extra or {}


class LitellmSettings(_Section):
    """``litellm_settings``. Fallbacks may stand here or in ``router_settings``, whose come first."""

    drop_params: bool = False
    modify_params: bool = False
    num_retries: Count | None = None
    request_timeout: Seconds | None = None
    allowed_fails: Count | None = None
    fallbacks: FallbackTable = ()
    context_window_fallbacks: FallbackTable = ()
    content_policy_fallbacks: FallbackTable = ()
    default_fallbacks: tuple[ModelName, ...] = ()
    use_chat_completions_url_for_anthropic_messages: bool = False
    cache: bool = False


class Alias(_Section):
    """A second name, in its long form."""

    model: ModelName
    hidden: bool = False


class RouterSettings(_Section):
    """``router_settings``: how requests are spread over the deployments of one name."""

    routing_strategy: Strategy = "simple-shuffle"
    num_retries: Count | None = None
    timeout: Seconds | None = None
    stream_timeout: Seconds | None = None
    allowed_fails: Count | None = None
    max_fallbacks: Count | None = None
    fallbacks: FallbackTable = ()
    context_window_fallbacks: FallbackTable = ()
    content_policy_fallbacks: FallbackTable = ()
    default_fallbacks: tuple[ModelName, ...] = ()
    model_group_alias: dict[ModelName, ModelName | Alias] = {}

    @property
    def for_router(self) -> dict[str, Any]:
        """What goes to ``litellm.Router`` untouched."""
        return {key: value for key, value in self.extra.items() if key in ROUTER_KEYS}


class GeneralSettings(_Section):
    """``general_settings``. The master key has become a client's key by then (config/settings.py)."""


EnvironmentText = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value)]


class ProviderSettings(Frozen):
    """LiteLLM's sections together."""

    model_list: tuple[Deployment, ...] = ()
    litellm_settings: LitellmSettings = LitellmSettings()
    router_settings: RouterSettings = RouterSettings()
    general_settings: GeneralSettings = Field(GeneralSettings(), repr=False)
    environment_variables: dict[str, EnvironmentText] = Field({}, repr=False)

    def secrets(self) -> frozenset[str]:
        """All values that must never be shown; very short ones are words of any text."""
        found = {*self.environment_variables.values(), *texts_below(self.router_settings.extra.get("redis_password"))}
        for deployment in self.model_list:
            found.update(deployment.secrets())
        return frozenset(text for text in found if len(text) >= 6)


def without_effect(settings: ProviderSettings) -> list[str]:
    """A line for each key that is there and does nothing, with the reason or the key that may be meant."""
    sections = {
        "litellm_settings": settings.litellm_settings,
        "router_settings": settings.router_settings,
        "general_settings": settings.general_settings,
    }
    lines = [_line("litellm_settings.cache", [])] if settings.litellm_settings.cache else []
    for name, section in sections.items():
        known = [*type(section).model_fields, *(ROUTER_KEYS if name == "router_settings" else ())]
        lines += [_line(f"{name}.{key}", known) for key, value in section.extra.items() if key not in known and value]
    return lines


def _line(key: str, known: list[str]) -> str:
    near = get_close_matches(key.partition(".")[2], known, n=1, cutoff=0.85)
    why = WHY_NOT.get(key) or (f"did you mean {near[0]}?" if near else "iChat has nothing for it to act on")
    return f"{key} has no effect: {why}"
