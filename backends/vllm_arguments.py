"""vLLM's command line, and what its complaints mean. No vLLM here: plain text and plain values."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from config.args import WorkerArguments
from utils.errors import ConfigError

MASK: Final = "***"
SECRETS: Final = re.compile(r"(^|_)(api_?key|key|hf_token|secret|password)$")
"""Names of arguments, and of keys within them, whose values nobody may see. Not every ``token``: some are counted."""
NOT_SHOWN: Final = frozenset({"model", "model_tag", "served_model_name", "host", "port"})
"""A worker tells these itself."""
MAX_MESSAGE: Final = 600

SPECULATIVE: Final = "write --speculative-config '{\"model\": ..., \"num_speculative_tokens\": ...}'"
FROM_MODEL: Final = "vLLM reads it from the model"
ALWAYS: Final = "leave it out: it is the only way now"
NO_MORE: Final = "leave it out: vLLM has nothing like it any more"
GONE: Final = {
    "device": "leave it out: vLLM finds the device itself",
    "disable-frontend-multiprocessing": ALWAYS,
    "disable-log-requests": "leave it out: requests are logged only with --enable-log-requests",
    "enable-prompt-adapter": NO_MORE,
    "guided-decoding-backend": 'write --structured-outputs-config \'{"backend": ...}\'',
    "image-feature-size": FROM_MODEL,
    "image-input-shape": FROM_MODEL,
    "image-input-type": FROM_MODEL,
    "image-token-id": FROM_MODEL,
    "lora-extra-vocab-size": NO_MORE,
    "max-context-len-to-capture": "write --max-cudagraph-capture-size",
    "max-paddings": NO_MORE,
    "max-prompt-adapter-token": NO_MORE,
    "max-prompt-adapters": NO_MORE,
    "max-seq-len-to-capture": "write --max-cudagraph-capture-size",
    "ngram-prompt-lookup-max": SPECULATIVE,
    "ngram-prompt-lookup-min": SPECULATIVE,
    "num-lookahead-slots": SPECULATIVE,
    "num-speculative-tokens": SPECULATIVE,
    "prompt-adapters": NO_MORE,
    "quantization-param-path": FROM_MODEL,
    "reorder-layers": NO_MORE,
    "rope-scaling": "write --hf-overrides '{\"rope_parameters\": {...}}'",
    "rope-theta": "write --hf-overrides '{\"rope_parameters\": {...}}'",
    "scheduler-delay-factor": NO_MORE,
    "speculative-max-model-len": SPECULATIVE,
    "speculative-model": SPECULATIVE,
    "swap-space": "leave it out: a request without room is computed again, not swapped",
    "task": "write --runner pooling for embeddings and reranking",
    "tokenizer-pool-extra-config": NO_MORE,
    "tokenizer-pool-size": NO_MORE,
    "tokenizer-pool-type": NO_MORE,
    "use-v2-block-manager": ALWAYS,
    "worker-use-ray": "write --distributed-executor-backend ray",
}
"""Arguments of older versions, and what to do instead."""

OURS: Final = {
    "headless": "start the other nodes' part with vLLM's own command line",
    "api_server_count": "start more workers: the gateway spreads the load",
    "grpc": "a worker speaks HTTP",
    "uds": "a worker listens on --host and --port",
    "ssl_keyfile": "TLS ends at the gateway",
    "ssl_certfile": "TLS ends at the gateway",
}
"""Arguments that vLLM knows, but that belong to its own server, which a worker is not."""


def engine_argv(arguments: WorkerArguments, port: int) -> list[str]:
    """What vLLM's parser gets: the worker's own facts, then the user's arguments as they are."""
    own = ["--model", arguments.model, "--served-model-name", *arguments.names]
    return [*own, "--host", arguments.host, "--port", str(port), *arguments.engine_argv]


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
    if path.is_dir() and not {"hf-config-path", "config-format", "load-format"} & set(given):
        if not any(next(path.glob(name), None) for name in described):
            raise ConfigError(f"--model {model}: there is no model in this folder: it has no config.json")


def explain_unrecognized(words: Sequence[str], options: Collection[str], engine: str) -> str:
    """What to say about words that vLLM's parser did not recognize. ``options`` are its own, with their dashes."""
    unknown = [word.partition("=")[0] for word in words if word.startswith("-")]
    if not unknown:
        return f"{engine} does not know what {words[0]!r} belongs to: write an argument's name before it"
    return "; ".join(explain_unknown(name, options, engine) for name in unknown)


def explain_unknown(option: str, options: Collection[str], engine: str) -> str:
    name = option.lstrip("-").replace("_", "-").removeprefix("no-")
    if name in GONE:
        return f"{engine} has no argument {option} any more: {GONE[name]}"
    nearest = difflib.get_close_matches(option.replace("_", "-"), sorted(options), n=3, cutoff=0.6)
    if not nearest:
        return f"{engine} has no argument {option}"
    return f"{engine} has no argument {option}: did you mean {' or '.join(nearest)}?"


def explain_foreign(given: Collection[str], engine: str) -> str:
    """What to say about arguments of vLLM's own server; empty where there are none. ``given``: those not default."""
    return "; ".join(f"a worker does not take --{name.replace('_', '-')} of {engine}: {hint}"
                     for name, hint in OURS.items() if name in given)  # fmt: skip


def one_sentence(message: str) -> str:
    """An error's text on one line, without what pydantic adds for programmers."""
    text = re.sub(r"\d+ validation errors? for \w+\n", "", message)
    text = re.sub(r" \[type=.*?(?=\n\S|\n\s+For further|\Z)", "", text, flags=re.DOTALL)
    text = re.sub(r"\n\s+For further information visit \S+", "", text)
    text = re.sub(r"^(\w+)\n  (?=\S)", r"\1: ", text, flags=re.MULTILINE)
    text = re.sub(r"\b(Value error, |Assertion failed, |Error: )", "", text)
    text = " ".join(text.split())
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 4] + " ..."


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
