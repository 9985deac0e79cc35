"""What vLLM is told on a machine without a GPU, where the user said nothing else."""

from collections.abc import Mapping

import pytest

from backends.vllm.cpu import GIB, CPUDefaults, cpu_defaults, kv_cache_bytes


def chosen(*given: str, environ: Mapping[str, str] | None = None) -> CPUDefaults:
    return cpu_defaults(set(given), environ or {}, cores=2, free_memory_bytes=24 * GIB)


def test_a_user_who_says_nothing_gets_what_works() -> None:
    defaults = chosen()
    assert defaults.arguments == {
        "enforce_eager": True, "dtype": "float32", "kv_cache_memory_bytes": 3 * GIB, "max_model_len": -1
    }  # fmt: skip
    assert defaults.environment == {
        "TORCH_COMPILE_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "2",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "untouched"),
    [
        ("dtype", {"dtype"}),
        ("max-model-len", {"max_model_len"}),
        ("kv-cache-memory-bytes", {"kv_cache_memory_bytes", "max_model_len"}),
        ("gpu-memory-utilization", {"kv_cache_memory_bytes", "max_model_len"}),
        ("no-enforce-eager", {"enforce_eager"}),
        ("O", {"enforce_eager"}),
    ],
)
def test_what_the_user_says_is_left_alone(given: str, untouched: set[str]) -> None:
    assert set(chosen().arguments) - set(chosen(given).arguments) == untouched


def test_adapters_are_asked_one_at_a_time() -> None:
    assert chosen("enable-lora").arguments["max_num_seqs"] == 1
    assert "max_num_seqs" not in chosen("enable-lora", "max-num-seqs").arguments


def test_who_wants_a_compiled_model_gets_one() -> None:
    assert "TORCH_COMPILE_DISABLE" not in chosen("compilation-config").environment


def test_the_environment_counts_as_said() -> None:
    assert "kv_cache_memory_bytes" not in chosen(environ={"VLLM_CPU_KVCACHE_SPACE": "2"}).arguments
    assert chosen(environ={"VLLM_CPU_OMP_THREADS_BIND": "0-3"}).environment == {"TORCH_COMPILE_DISABLE": "1"}
    assert "OMP_NUM_THREADS" not in chosen(environ={"OMP_NUM_THREADS": "1"}).environment


@pytest.mark.parametrize(("free", "taken"), [(0, 1), (15, 1), (16, 2), (31, 3), (1000, 16)])
def test_the_cache_is_a_share_of_the_free_memory_within_limits(free: int, taken: int) -> None:
    assert kv_cache_bytes(free * GIB) == taken * GIB
