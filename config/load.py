"""config.yaml and the environment -> GatewaySettings, or one clear error that names the key."""

import contextlib
import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError
from yaml.constructor import ConstructorError
from yaml.parser import ParserError
from yaml.scanner import ScannerError

from config.admission import AdmissionSettings, KeyLimits, ModelAdmission
from config.providers import Deployment
from config.settings import (
    ClientKey,
    Engine,
    GatewaySettings,
    ModelRouting,
    RoutingSettings,
    ServerSettings,
    unknown_key,
)
from utils.errors import ConfigError

PREFIX = "ICHAT_"
NESTED = "__"
MAY_BE_UNUSED = ("general_settings.", "litellm_settings.", "router_settings.")
"""Sections of LiteLLM whose keys may do nothing here: a variable that none of ours needs may be missing."""


def load_settings(path: Path, environ: Mapping[str, str] = os.environ) -> GatewaySettings:
    """The settings of a file, with those of the environment over them.

    ``ICHAT_SERVER_SETTINGS__PORT=4001`` is ``server_settings: {port: 4001}``; values are read as YAML.
    Raises ConfigError for a file that cannot be read, is no YAML, or holds a wrong or unknown key.
    """
    above = settings_of_environment(environ)
    values = merge(read_yaml(path), above)
    values = resolve_references(values, {**environment_of(values, environ), **environ})
    try:
        settings = GatewaySettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, path, above)) from error
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
        values = UniqueKeyLoader(text).get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {yaml_trouble(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys such as server_settings:, but it holds a {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML's own loader takes the last of two equal keys and says nothing: a whole section would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, f"the key {key.value} is there twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def yaml_trouble(error: yaml.YAMLError) -> str:
    """What is wrong and where. The line itself is not repeated: it may hold a secret."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    problem = str(error.problem)
    if not isinstance(error, ScannerError | ParserError):
        problem = problem.partition("'")[0].rstrip()  # the name of an alias or tag may be the secret
    return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {problem}"


def settings_of_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The ``ICHAT_SECTION__KEY=value`` variables as the nested mapping that they stand for."""
    values: dict[str, Any] = {}
    sections = list(GatewaySettings.model_fields)
    for name, text in sorted(environ.items()):
        section, *keys = name.removeprefix(PREFIX).lower().split(NESTED)
        if not name.startswith(PREFIX):
            continue
        if section in sections:
            value = value_of(name, text)
            for key in reversed([section, *keys]):
                value = {key: value}
            values = merge(values, value)
        elif keys or section.startswith(tuple(f"{known}_" for known in sections)):
            # Others, such as ICHAT_WORKER_TOKEN, are no settings of the gateway.
            raise ConfigError(
                f"environment: {name}: {unknown_key(section, sections)} "
                f"(two underscores stand between a section and its key: {PREFIX}SERVER_SETTINGS{NESTED}PORT)"
            )
    return values


def value_of(name: str, text: str) -> Any:
    """A variable's text as YAML reads it, but words as they stand: a secret may hold a ``#`` or begin with a ``*``."""
    text = text.strip()
    if text.startswith(("{", "[", "'", '"')):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"environment: {name} is not valid YAML: {yaml_trouble(error)}") from None
    with contextlib.suppress(yaml.YAMLError):
        value = yaml.safe_load(text)
        if isinstance(value, bool | int | float) or text.lower() in ("", "~", "null"):
            return value
    return text


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both mappings as one; where both hold a value the upper one's stands, mappings are merged."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def environment_of(values: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """LiteLLM's ``environment_variables``, which references may name as if they were set; the real ones win."""
    given = values.get("environment_variables")
    if not isinstance(given, dict):
        return {}
    resolved = resolve_references(given, environ, "environment_variables")
    return {str(name): str(value) for name, value in resolved.items()}


def resolve_references(value: Any, environ: Mapping[str, str], where: str = "") -> Any:
    """``os.environ/NAME``, LiteLLM's way to keep secrets out of files, replaced by the variable's value."""
    if isinstance(value, dict):
        return {key: resolve_references(item, environ, f"{where}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve_references(item, environ, f"{where}.{index}") for index, item in enumerate(value)]
    if isinstance(value, str) and value.startswith("os.environ/"):
        name = value.removeprefix("os.environ/")
        if name not in environ and where.startswith(MAY_BE_UNUSED) and where != "general_settings.master_key":
            return value
        if name not in environ:
            raise ConfigError(f"{where}: {value} names an environment variable that is not set: set {name}")
        return environ[name]
    return value


MAPPING: Final = "this has to be a mapping: {key: value}"
LIST: Final = "this has to be a list: [item, item]"
PLAIN_WORDS: Final = {"dict_type": MAPPING, "model_type": MAPPING, "list_type": LIST, "tuple_type": LIST}
"""What pydantic says with the names of Python's types."""


def describe(error: ValidationError, path: Path, above: Mapping[str, Any]) -> str:
    """All that is wrong, a line a key. Values are not repeated: they may be secrets."""
    problems = error.errors(include_url=False)
    return "\n".join(f"{variable_of(each['loc'], above) or path}: {_describe_one(dict(each))}" for each in problems)


def variable_of(location: tuple[int | str, ...], above: Mapping[str, Any]) -> str:
    """The environment variable that a wrong value came from; "" where it came from the file."""
    value: Any = above
    for depth, key in enumerate(location):
        if not isinstance(value, dict):
            return f"environment: {PREFIX}{NESTED.join(map(str, location[:depth])).upper()}"
        if key not in value:
            return ""
        value = value[key]
    return "" if isinstance(value, dict) else f"environment: {PREFIX}{NESTED.join(map(str, location)).upper()}"


def _describe_one(problem: dict[str, Any]) -> str:
    location = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        *parents, key = location
        where = ".".join(parents)
        return (f"{where}: " if where else "") + unknown_key(key, known_keys(parents))
    message = PLAIN_WORDS.get(problem["type"]) or str(problem["msg"]).removeprefix("Value error, ")
    return f"{'.'.join(location)}: {message}" if location else message


def known_keys(parents: list[str]) -> list[str]:
    """The keys that the section at ``parents`` takes."""
    sections: dict[str, type[BaseModel]] = {
        "": GatewaySettings,
        "server_settings": ServerSettings,
        "server_settings.keys": ClientKey,
        "server_settings.keys.limits": KeyLimits,
        "engines": Engine,
        "routing": RoutingSettings,
        "routing.models": ModelRouting,
        "admission": AdmissionSettings,
        "admission.models": ModelAdmission,
        "model_list": Deployment,
    }
    # The number of an item in a list, and the name of one in a mapping, are no part of a section's name.
    names = [part for part in parents if not part.isdigit()]
    section = sections.get(".".join(names)) or (sections.get(".".join(names[:-1])) if len(names) > 1 else None)
    return list(section.model_fields) if section else []
