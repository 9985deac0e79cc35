"""config.yaml and the environment -> GatewaySettings, or one clear error that names the key."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from config.settings import GatewaySettings, unknown_key
from utils.errors import ConfigError

PREFIX = "ICHAT_"
NESTED = "__"


def load_settings(path: Path, environ: Mapping[str, str] = os.environ) -> GatewaySettings:
    """The settings of a file, with those of the environment over them.

    ``ICHAT_SERVER_SETTINGS__PORT=4001`` is ``server_settings: {port: 4001}``; values are read as YAML.
    Raises ConfigError for a file that cannot be read, is no YAML, or holds a wrong or unknown key.
    """
    values = merge(read_yaml(path), settings_of_environment(environ))
    values = resolve_references(values, environ)
    try:
        settings = GatewaySettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, path)) from error
    for missing in settings.missing_model_paths():
        raise ConfigError(f"{path}: managed_workers: model_path {missing!r} does not exist: correct the path")
    return settings


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} does not exist: copy config.yaml.example to it, or name another file with --config"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys such as server_settings:, but it holds a {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


def settings_of_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The ``ICHAT_SECTION__KEY=value`` variables as the nested mapping that they stand for."""
    values: dict[str, Any] = {}
    for name, text in sorted(environ.items()):
        section, nested, rest = name.removeprefix(PREFIX).lower().partition(NESTED)
        if not name.startswith(PREFIX) or not nested:
            continue
        if section not in GatewaySettings.model_fields:
            raise ConfigError(f"environment: {name}: {unknown_key(section, list(GatewaySettings.model_fields))}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"environment: {name} is not valid YAML: {' '.join(str(error).split())}") from error
        for key in reversed([section, *rest.split(NESTED)]):
            value = {key: value}
        values = merge(values, value)
    return values


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both mappings as one; where both hold a value the upper one's stands, mappings are merged."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def resolve_references(value: Any, environ: Mapping[str, str]) -> Any:
    """``os.environ/NAME``, LiteLLM's way to keep secrets out of files, replaced by the variable's value."""
    if isinstance(value, dict):
        return {key: resolve_references(item, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve_references(item, environ) for item in value]
    if isinstance(value, str) and value.startswith("os.environ/"):
        name = value.removeprefix("os.environ/")
        if name not in environ:
            raise ConfigError(f"config names the environment variable {name} ({value}), but it is not set")
        return environ[name]
    return value


def describe(error: ValidationError, path: Path) -> str:
    """All that is wrong, a line a key. Values are not repeated: they may be secrets."""
    return "\n".join(f"{path}: {_describe_one(dict(problem))}" for problem in error.errors(include_url=False))


def _describe_one(problem: dict[str, Any]) -> str:
    location = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        *parents, key = location
        where = ".".join(parents)
        return (f"{where}: " if where else "") + unknown_key(key, known_keys(parents))
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{'.'.join(location)}: {message}" if location else message


def known_keys(parents: list[str]) -> list[str]:
    """The keys that the section at ``parents`` takes."""
    sections: dict[str, type[BaseModel]] = {"": GatewaySettings}
    for name, field in GatewaySettings.model_fields.items():
        default = field.default
        if isinstance(default, BaseModel):
            sections[name] = type(default)
    section = sections.get(parents[0] if parents else "")
    return list(section.model_fields) if section else []
