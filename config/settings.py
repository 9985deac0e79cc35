"""The gateway's settings: every key of config.yaml, frozen, and checked once at the start."""

import hashlib
import re
from collections import Counter
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator

from config.admission import NORMAL, AdmissionSettings, KeyLimits, Priority, Weight
from config.args import HOST, WORKER_ID, default_worker_id, is_header_word
from config.fields import CollectorUrl, Frozen, Name, Seconds
from config.providers import (
    Deployment,
    EnvironmentText,
    GeneralSettings,
    LitellmSettings,
    ProviderSettings,
    RouterSettings,
)
from config.unified import UNIFIED_ARGUMENTS, WORKER_ARGUMENTS

Port = Annotated[int, Field(ge=1, le=65535)]
WorkerId = Annotated[str, Field(min_length=1, max_length=256, pattern=WORKER_ID)]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"],
    BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
]
OWN_ARGUMENTS = frozenset({"model", "model_path", "model_name", "served_model_name", "backend", "host", "port",
                           "gateway_address", "worker_id", "heartbeat_interval", "drain_timeout",
                           "max_body_mb"})  # fmt: skip
"""What the gateway itself says on a managed worker's command line: ``backend_args`` must not say it again."""

MASTER_KEY = "master_key"
"""The client's name that LiteLLM's master key gets."""


def hash_of_key(value: Any) -> str:
    """The hash with its name before it. Raises ValueError, which does not repeat what may be the key itself."""
    found = re.fullmatch(r"(?:sha256:)?([0-9a-f]{64})", value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(
            "a key's hash is 64 digits and letters a to f, without what sha256sum prints after it "
            "(is this the key itself? Its hash belongs here)"
        )
    return f"sha256:{found[1]}"


KeyHash = Annotated[
    str,
    BeforeValidator(hash_of_key),
]
"""As ``sha256sum`` prints it, with or without the name of the hash before it."""


def unknown_key(key: str, known: list[str], elsewhere: str | None = None) -> str:
    """Words for a key that does not exist: the nearest that do, and where engine arguments go."""
    near = get_close_matches(key, known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "remove it"
    if elsewhere:
        hint += f" (an argument of the engine itself goes below {elsewhere})"
    return f"unknown key {key!r}: {hint}"


def require_unique(where: str, what: str, values: list[Any]) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            raise ValueError(f"{where}: {what} {value!r} is used twice: each needs its own")


def absolute(path: str) -> str:
    """A path that means the same in every folder: a worker runs in another one than the gateway."""
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError as error:  # ~somebody
        raise ValueError(f"{path!r}: {error}") from error


class ClientKey(Frozen):
    """One client's API key: its name in logs and metrics, the hash of the key itself, and what it may ask for."""

    name: Name
    hash: KeyHash
    weight: Weight = 1.0  # its share of a queue, against those of the other keys in it
    priority: Priority = NORMAL  # the most urgent class that its requests may ask for
    limits: KeyLimits | None = None


class ServerSettings(Frozen):
    """The gateway's own door, and how long it waits for whom. All times are in seconds."""

    host: str = "0.0.0.0"  # noqa: S104 - a gateway is there to be reached
    port: Annotated[int, Field(ge=0, le=65535)] = 4000
    log_level: LogLevel = "info"
    log_dir: str = "logs"
    keys: tuple[ClientKey, ...] = ()
    admin_key_hash: KeyHash | None = None
    worker_token: SecretStr | None = None
    max_body_mb: Annotated[float, Field(gt=0, le=4096)] = 32
    body_timeout_s: Seconds = 30
    connect_timeout_s: Seconds = 5
    answer_timeout_s: Seconds = 600
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    resume_kb: Annotated[int, Field(ge=0, le=64 * 1024)] = 256
    circuit_threshold: Annotated[int, Field(ge=1)] = 3
    circuit_cooldown_s: Seconds = 5
    drain_timeout_s: Seconds = 30
    probe_interval_s: Annotated[float, Field(ge=0.1)] = 1
    forget_after_s: Seconds = 300
    otel_endpoint: CollectorUrl | None = None

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        require_unique("server_settings.keys", "name", [key.name for key in self.keys])
        require_unique("server_settings.keys", "hash", [key.hash for key in self.keys])
        return self

    @field_validator("worker_token")
    @classmethod
    def _token_fits_into_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not is_header_word(value.get_secret_value()):
            raise ValueError("must be one word of ASCII letters, digits and signs; remove the key for no token")
        return value

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mb * 1024 * 1024)


class ManagedWorker(BaseModel):
    """A worker that the gateway starts, watches and stops.

    Beside these keys it takes the unified engine arguments (``config/unified.py``), e.g. ``max_model_len``.
    """

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True, protected_namespaces=())

    model_name: Name
    model_path: Annotated[str, Field(min_length=1)]
    backend: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] = "vllm"
    port: Port
    host: Annotated[str, Field(pattern=HOST)] = "127.0.0.1"
    gpu_ids: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    worker_id: WorkerId | None = None
    aliases: tuple[Name, ...] = ()
    heartbeat_interval: Annotated[float, Field(ge=0.2, le=3600)] = 3
    start_timeout_s: Seconds = 1800
    env: dict[str, str] = {}
    backend_args: dict[str, Any] = {}

    @field_validator("model_path")
    @classmethod
    def _folder_is_absolute(cls, value: str) -> str:
        return absolute(value) if value.startswith((".", "~", "/")) else value

    @field_validator("backend_args")
    @classmethod
    def _own_arguments_stand_outside(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            if key.lstrip("-").replace("-", "_") in OWN_ARGUMENTS:
                raise ValueError(f"{key!r} is not the engine's: it follows from this worker's own keys, remove it here")
        return value

    @field_validator("env", mode="before")
    @classmethod
    def _env_values_are_text(cls, value: Any) -> Any:
        # YAML reads OMP_NUM_THREADS: 2 as a number, and a person means the text.
        if isinstance(value, dict):
            return {key: str(item) if isinstance(item, int | float) else item for key, item in value.items()}
        return value

    @model_validator(mode="before")
    @classmethod
    def _extra_keys_are_unified_arguments(cls, value: Any) -> Any:
        # Before all else: "port: Field required" would not help the one who wrote "prot".
        known = [*cls.model_fields, *UNIFIED_ARGUMENTS, *WORKER_ARGUMENTS]
        for key in value if isinstance(value, dict) else ():
            if key not in known:
                raise ValueError(unknown_key(str(key), known, "backend_args"))
        return value

    @property
    def id(self) -> str:
        """The worker's id: the one given, else made of what makes it one of a kind on this machine."""
        return self.worker_id or default_worker_id(self.model_name, self.port)

    @property
    def engine_arguments(self) -> dict[str, Any]:
        """Unified and engine-specific arguments together; those of ``backend_args`` win."""
        return {**(self.model_extra or {}), **self.backend_args}


class Engine(Frozen):
    """Which interpreter runs a backend: two engines cannot always share one environment."""

    python: Annotated[str, Field(min_length=1)]

    @field_validator("python")
    @classmethod
    def _path_is_absolute(cls, value: str) -> str:
        return absolute(value) if "/" in value else value


PolicyName = Literal["cache_aware", "least_load", "power_of_two", "round_robin", "random", "session"]


class ModelRouting(Frozen):
    """How one model's replicas are chosen."""

    policy: PolicyName


class RoutingSettings(Frozen):
    """How a replica is chosen (relay/routing/policy.py), for all models, and for some by name.

    ``weights``: by worker id, 1 for others. ``local_first``: the gateway's own host before others.
    ``keep_decisions``: of each model, for the admin API.
    """

    policy: PolicyName = "cache_aware"
    models: dict[Name, ModelRouting] = Field({})
    weights: dict[WorkerId, Annotated[float, Field(gt=0, le=1000)]] = {}
    local_first: bool = False
    keep_decisions: Annotated[int, Field(ge=0, le=10000)] = 50

    @property
    def by_model(self) -> dict[str, PolicyName]:
        return {name: model.policy for name, model in self.models.items()}


def with_master_key(values: dict[str, Any]) -> dict[str, Any]:
    """LiteLLM's ``general_settings.master_key`` as what it means: a client's key, and that of the admin routes.

    Only its hash goes further. Raises ValueError.
    """
    general, server = values.get("general_settings"), values.get("server_settings", {})
    if not (isinstance(general, dict) and isinstance(server, dict)) or general.get("master_key") is None:
        return values
    key = general["master_key"]
    if not isinstance(key, str) or not is_header_word(key):
        raise ValueError("general_settings.master_key must be one word of ASCII letters, digits and signs")
    hashed = f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    keys = server.get("keys") or ()
    if isinstance(keys, list | tuple):
        keys = (*keys, {"name": MASTER_KEY, "hash": hashed})
    return {
        **values,
        "general_settings": {name: value for name, value in general.items() if name != "master_key"},
        "server_settings": {"admin_key_hash": hashed, **server, "keys": keys},
    }


class GatewaySettings(Frozen):
    """All of config.yaml."""

    server_settings: ServerSettings = ServerSettings()
    managed_workers: tuple[ManagedWorker, ...] = ()
    engines: dict[str, Engine] = Field({})
    routing: RoutingSettings = RoutingSettings()
    admission: AdmissionSettings = AdmissionSettings()
    model_list: tuple[Deployment, ...] = ()
    litellm_settings: LitellmSettings = LitellmSettings()
    router_settings: RouterSettings = RouterSettings()
    general_settings: GeneralSettings = Field(GeneralSettings(), repr=False)
    environment_variables: dict[str, EnvironmentText] = Field({}, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_sections_and_the_master_key(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        # "managed_workers:" with nothing below it is null in YAML, and means none.
        return with_master_key(
            {key: item for key, item in value.items() if item is not None or key not in cls.model_fields}
        )

    @property
    def providers(self) -> ProviderSettings:
        """LiteLLM's sections together."""
        return ProviderSettings(**{key: getattr(self, key) for key in ProviderSettings.model_fields})

    @model_validator(mode="after")
    def _nothing_twice(self) -> Self:
        workers = self.managed_workers
        require_unique("managed_workers", "worker_id", [worker.id for worker in workers])
        require_unique("managed_workers", "port", [worker.port for worker in workers])
        if self.server_settings.port in [worker.port for worker in workers]:
            raise ValueError(
                f"port {self.server_settings.port} is the gateway's (server_settings.port) and a managed worker's: "
                "give the worker another port"
            )
        for worker in workers:
            taken = {worker.model_name, *worker.aliases}
            if len(taken) <= len(worker.aliases):
                raise ValueError(f"managed_workers: {worker.model_name} names itself twice: remove the double alias")
        return self

    def missing_model_paths(self) -> list[str]:
        """Model paths that look like folders and are not there. An id such as ``org/model`` is the engine's matter."""
        paths = {worker.model_path for worker in self.managed_workers if worker.backend != "fake"}
        return sorted(path for path in paths if path.startswith("/") and not Path(path).exists())
