"""What vLLM complains about, in words that say what to do. Plain text; no vLLM here."""

from collections.abc import Collection, Sequence
from typing import Any, Final

from backends.complaints import explain_nearest, one_sentence
from utils.logger import EventLogger

SPECULATIVE: Final = 'write --speculative-config \'{"model": ..., "num_speculative_tokens": ...}\''
FROM_MODEL: Final = "vLLM reads it from the model"
ALWAYS: Final = "leave it out: it is the only way now"
NO_MORE: Final = "leave it out: vLLM has nothing like it any more"
GONE: Final = {
    "device": "leave it out: vLLM finds the device itself",
    "disable-frontend-multiprocessing": ALWAYS,
    "disable-log-requests": "leave it out: requests are logged only with --enable-log-requests",
    "enable-prompt-adapter": NO_MORE,
    "guided-decoding-backend": "write --structured-outputs-config '{\"backend\": ...}'",
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

logger = EventLogger("backend")


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
    return explain_nearest(option, options, engine)


def explain_foreign(given: Collection[str], engine: str) -> str:
    """What to say about arguments of vLLM's own server; empty where there are none. ``given``: those not default."""
    return "; ".join(f"a worker does not take --{name.replace('_', '-')} of {engine}: {hint}"
                     for name, hint in OURS.items() if name in given)  # fmt: skip


def explain_failed_start(error: Exception) -> str:
    """The root cause is a child's, and stands in the log: vLLM passes on no more than names and exit codes."""
    text = one_sentence(f"{type(error).__name__}: {error}")
    if ": -9}" in text:
        return "vLLM's engine process was killed while loading, as the system does when memory runs out"
    if "Engine core initialization failed" in text:
        return "vLLM's engine did not start: the reason is in the log"
    logger.error("engine_start_failed", exc_info=error)
    return f"vLLM's engine did not start: {text}"


def name_dead_process(client: Any) -> str:
    """Such as ``vLLM's EngineCore (killed by signal 9)``; less where vLLM does not know it."""
    processes: Any = getattr(getattr(client.engine_core, "resources", None), "engine_manager", None)
    name = getattr(processes, "failed_proc_name", None)
    if not name:
        return "vLLM's engine"
    code = processes.finished_procs().get(name)
    if code is None:
        return f"vLLM's {name}"
    return f"vLLM's {name} ({f'killed by signal {-code}' if code < 0 else f'exit code {code}'})"
