"""What vLLM needs on a machine without a GPU, where the user said nothing else."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

GIB: Final = 1024**3
KV_CACHE_SHARE: Final = 1 / 8
"""Of the memory that is free when the worker starts: other workers want to start, too."""
KV_CACHE_LIMITS: Final = (GIB, 16 * GIB)

COMPILING: Final = frozenset({"no-enforce-eager", "compilation-config", "optimization-level", "cc", "O"})
"""Options of users who want their model compiled."""
CACHE_SIZE: Final = frozenset({"kv-cache-memory-bytes", "gpu-memory-utilization", "num-gpu-blocks-override"})


@dataclass(frozen=True, slots=True)
class CPUDefaults:
    """``arguments`` become the defaults of vLLM's parser, ``environment`` is set where a variable is not."""

    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


def cpu_defaults(
    given: Collection[str], environ: Mapping[str, str], *, cores: int, free_memory_bytes: int
) -> CPUDefaults:
    """``given``: the options of the command line, without dashes in front. Pure."""
    arguments: dict[str, Any] = {}
    environment: dict[str, str] = {}
    if not COMPILING & set(given):
        # Compiled bfloat16 gave wrong answers on CPUs without AMX; compiled float32 takes minutes to start.
        arguments["enforce_eager"] = True
        # Else the first request for logprobs compiles, and stalls all others for 16 s.
        environment["TORCH_COMPILE_DISABLE"] = "1"
    if "dtype" not in given:
        # CPUs without AMX or AVX512-BF16 emulate the short floats.
        arguments["dtype"] = "float32"
    if not CACHE_SIZE & set(given) and "VLLM_CPU_KVCACHE_SPACE" not in environ:
        # vLLM would take 92 % of the machine's memory, and refuse to start where that is not free.
        arguments["kv_cache_memory_bytes"] = kv_cache_bytes(free_memory_bytes)
        if "max-model-len" not in given:
            # As long as the cache holds: vLLM shortens it only where the model's own length does not fit.
            arguments["max_model_len"] = -1
    if "enable-lora" in given and "max-num-seqs" not in given:
        # One at a time: in a batch with an adapter's, a request for the model itself is answered with that adapter's
        # weights (https://github.com/vllm-project/vllm/pull/48421; only on CPUs).
        arguments["max_num_seqs"] = 1
    if "VLLM_CPU_OMP_THREADS_BIND" not in environ:
        # Bound to cores, several workers would sit on the same ones.
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        environment["OMP_NUM_THREADS"] = str(cores)
        # Then the model may run in the engine core's own process: one import of 10 s and 0.7 GB less than with a
        # worker process beside it, which vLLM wants on CPUs only to bind its threads.
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return CPUDefaults(arguments, {name: value for name, value in environment.items() if name not in environ})


def kv_cache_bytes(free_memory_bytes: int) -> int:
    """A share of the free memory in whole GiB, within limits."""
    smallest, largest = KV_CACHE_LIMITS
    share = int(free_memory_bytes * KV_CACHE_SHARE) // GIB * GIB
    return min(max(share, smallest), largest)
