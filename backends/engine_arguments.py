"""vLLM's command line: what goes in, and what a worker shows of it. Plain values; no vLLM here."""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from config.args import WorkerArguments
from utils.common import url_host
from utils.errors import ConfigError

MASK: Final = "***"
SECRETS: Final = re.compile(r"(^|_)(api_?key|key|hf_token|secret|password|watermark_config)$")
"""Names of arguments, and of keys within them, whose values nobody may see. Not every ``token``: some are counted."""
NOT_SHOWN: Final = frozenset({"model", "model_tag", "served_model_name", "host", "port"})
"""A worker tells these itself."""

NO_HOST: Final = "none.invalid"
"""A name that no host can have (RFC 6761)."""


def engine_argv(arguments: WorkerArguments, port: int) -> list[str]:
    """What vLLM's parser gets: the worker's own facts, then the user's arguments as they are."""
    own = ["--model", arguments.model, "--served-model-name", *arguments.names]
    if arguments.allowed_local_media_path:
        own += ["--allowed-local-media-path", arguments.allowed_local_media_path]
    own += allowed_domains_argv(arguments)
    return [*own, "--host", arguments.host, "--port", str(port), *arguments.engine_argv]


def allowed_domains_argv(arguments: WorkerArguments) -> list[str]:
    """For vLLM and SGLang, behind the worker's own check. Both would take no host at all for every host."""
    return ["--allowed-media-domains", *(map(url_host, arguments.allowed_media_domains or (NO_HOST,)))]


def given_options(argv: Iterable[str]) -> set[str]:
    """The options in ``argv`` as vLLM sees them: ``--max_model_len=8`` and ``--max-model-len.x`` are max-model-len."""
    names = (word.lstrip("-").partition("=")[0].partition(".")[0] for word in argv if re.match(r"--?[A-Za-z]", word))
    return {"O" if re.fullmatch(r"O\w*", name) else name.replace("_", "-") for name in names}


def check_model_folder(model: str, given: Collection[str]) -> None:
    """Raises ConfigError for a path with no model behind it, which is cheaper to say now than after vLLM's import."""
    path = Path(model)
    if not path.exists():
        if model.startswith(("/", "./", "../", "~")):
            raise ConfigError(f"--model {model}: there is no such folder")
        return
    described = ("config.json", "params.json", "*.gguf")
    elsewhere = {"hf-config-path", "config-format", "load-format"} & set(given)
    if path.is_dir() and not elsewhere and not any(next(path.glob(name), None) for name in described):
        raise ConfigError(f"--model {model}: there is no model in this folder: it has no config.json")


def shown_arguments(effective: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that differ from the engine's defaults, as plain JSON values, secrets masked."""
    return {
        name: shown(name, value)
        for name, value in effective.items()
        if name not in NOT_SHOWN and name in defaults and not is_same(value, defaults[name])
    }


def is_same(value: Any, default: Any) -> bool:
    """Defaults may be written as words of the command line."""
    return bool(value == default) or str(value) == str(default)


def shown(name: str, value: Any) -> Any:
    if value is not None and SECRETS.search(name.lower().replace("-", "_")):
        return MASK
    if isinstance(value, Mapping):
        return {str(key): shown(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [shown("", item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
