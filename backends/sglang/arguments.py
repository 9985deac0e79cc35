"""The unified arguments, which are vLLM's, in SGLang's words. Plain values; no SGLang here (doc/arguments.md)."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from utils.errors import ConfigError

Given = Mapping[str, list[str]]
"""Unified names with their words; a flag has ["true"] or ["false"]."""

SAME: Final = frozenset(
    {
        "tokenizer_mode", "revision", "trust_remote_code", "dtype", "quantization", "load_format", "download_dir",
        "model_loader_extra_config", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "nnodes",
        "node_rank", "disable_custom_all_reduce", "kv_cache_dtype", "cpu_offload_gb", "attention_backend",
        "chat_template", "tool_call_parser", "reasoning_parser", "enable_lora",
        "max_lora_rank",
    }
)  # fmt: skip
"""SGLang has these under the same name: nothing is to be done."""

RENAMED: Final = {
    "tokenizer": "tokenizer-path",
    "hf_overrides": "json-model-override-args",
    "max_model_len": "context-length",
    "seed": "random-seed",
    "gpu_memory_utilization": "mem-fraction-static",
    "block_size": "page-size",
    "max_num_seqs": "max-running-requests",
    "max_num_batched_tokens": "max-prefill-tokens",
    "limit_mm_per_prompt": "limit-mm-data-per-request",
    "lora_modules": "lora-paths",
    "max_cpu_loras": "max-loaded-loras",
}

PARSERS: Final[Mapping[str, Mapping[str, str]]] = {
    "tool_call_parser": {
        "deepseek_v3": "deepseekv3",
        "deepseek_v31": "deepseekv31",
        "deepseek_v32": "deepseekv32",
        "deepseek_v4": "deepseekv4",
        "deepseek_v41": "deepseekv41",
        "hunyuan_a13b": "hunyuan",
        "internlm": "interns1",
        "minimax_m2": "minimax-m2",
        "minimax_m3": "minimax-m3",
        "muse_glimmer": "muse",
        "openai": "gpt-oss",
    },
    "reasoning_parser": {
        "deepseek_r1": "deepseek-r1",
        "deepseek_v3": "deepseek-v3",
        "deepseek_v4": "deepseek-v4",
        "deepseek_v41": "deepseek-v41",
        "hunyuan_a13b": "hunyuan",
        "minimax_m2": "minimax",
        "minimax_m2_append_think": "minimax-append-think",
        "minimax_m3": "minimax-m3",
        "muse_glimmer": "muse",
        "nemotron_v3": "nemotron_3",
        "openai_gptoss": "gpt-oss",
    },
}
"""vLLM's names of parsers that SGLang has under another; the other names stay as they are."""

NO_GRAPHS: Final = ["--cuda-graph-backend-decode", "disabled", "--cuda-graph-backend-prefill", "disabled"]
FLAGS: Final[Mapping[str, tuple[list[str], list[str]]]] = {
    "enforce_eager": (NO_GRAPHS, []),
    "enable_prefix_caching": ([], ["--disable-radix-cache"]),
    "enable_chunked_prefill": ([], ["--chunked-prefill-size", "-1"]),
    "async_scheduling": ([], ["--disable-overlap-schedule"]),
    "enable_sleep_mode": (["--enable-memory-saver"], []),
    "enable_prompt_tokens_details": (["--enable-cache-report"], []),
    "disable_log_stats": ([], ["--enable-metrics"]),
    "enable_log_requests": (["--log-requests"], []),
    "enable_auto_tool_choice": ([], []),
}
"""What stands for a flag given, and for the same flag with ``no-``; [] where that is SGLang's default."""

CHOICES: Final[Mapping[str, Mapping[str, list[str]]]] = {
    "scheduling_policy": {"fcfs": ["--schedule-policy", "fcfs"], "priority": ["--enable-priority-scheduling"]},
    "runner": {"auto": [], "generate": [], "pooling": ["--is-embedding"]},
    "convert": {
        "auto": [],
        "none": [],
        "embed": ["--is-embedding"],
        "classify": ["--is-embedding"],
        "reward": ["--is-embedding"],
    },
    "distributed_executor_backend": {"mp": [], "uni": [], "ray": ["--use-ray"]},
    "generation_config": {"auto": ["--sampling-defaults", "model"], "vllm": ["--sampling-defaults", "openai"]},
}

NO_COUNTERPART: Final = {
    "tokenizer_revision": "give a folder with the tokenizer as --tokenizer",
    "code_revision": "give a folder with the model's code",
    "config_format": "SGLang finds the format itself",
    "pooler_config": "SGLang reads it from the model",
    "kv_cache_memory_bytes": "say --max-total-tokens, or --gpu-memory-utilization",
    "num_gpu_blocks_override": "say --max-total-tokens",
    "compilation_config": "say --enable-torch-compile",
    "speculative_config": "say --speculative-algorithm and --speculative-num-draft-tokens",
    "chat_template_content_format": "SGLang finds the format itself",
    "response_role": "SGLang always answers as assistant",
    "tool_parser_plugin": "SGLang loads no parsers from files",
    "max_logprobs": "SGLang has no limit",
    "lora_dtype": "SGLang takes the model's",
    "max_log_len": "say --log-requests-level",
}


def expert_parallel(given: Given) -> list[str]:
    if given["enable_expert_parallel"] == ["false"]:
        return []
    return ["--ep-size", (given.get("tensor_parallel_size") or ["1"])[-1]]


def master_address(given: Given) -> list[str]:
    """vLLM's defaults, 127.0.0.1 and 29501, stand for the half that was not given."""
    address = (given.get("master_addr") or ["127.0.0.1"])[-1]
    return ["--dist-init-addr", f"{address}:{(given.get('master_port') or ['29501'])[-1]}"]


def grammar_backend(given: Given) -> list[str]:
    words = given["structured_outputs_config"]
    try:
        config = json.loads(words[-1])
        backend = config.pop("backend")
    except (ValueError, KeyError, IndexError, AttributeError, TypeError):
        config, backend = None, ""
    if config or not isinstance(backend, str) or not backend:
        raise ConfigError(
            '--structured-outputs-config on SGLang takes no more than a backend, as {"backend": "xgrammar"}'
        )
    return [] if backend == "auto" else ["--grammar-backend", backend]


def adapters_at_once(given: Given) -> list[str]:
    """SGLang counts requests for the model itself as one more adapter."""
    word = given["max_loras"][-1]
    try:
        return ["--max-loras-per-batch", str(int(word) + 1)]
    except ValueError:
        raise ConfigError(f"--max-loras {word}: give a whole number") from None


COMPUTED: Final[Mapping[str, Callable[[Given], list[str]]]] = {
    "enable_expert_parallel": expert_parallel,
    "master_addr": master_address,
    "master_port": lambda given: [] if "master_addr" in given else master_address(given),
    "max_loras": adapters_at_once,
    "structured_outputs_config": grammar_backend,
}

TRANSLATED: Final = frozenset({*SAME, *RENAMED, *FLAGS, *CHOICES, *COMPUTED})


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a command line: ``words`` holds it as written, option first; ``values`` what belongs to it."""

    name: str
    words: list[str]
    values: list[str]
    is_negated: bool


def to_sglang(argv: Sequence[str], own: Collection[str]) -> list[str]:
    """``argv`` in SGLang's words. ``own``: the options of its parser, with dashes, which stay as they are.

    Raises ConfigError for unified arguments without a counterpart, all of them at once.
    """
    options = split_options(argv)
    given = {option.name: option.values or [str(not option.is_negated).lower()] for option in options if option.name}
    translated: list[str] = []
    complaints = []
    for option in options:
        written = option.words[0].partition("=")[0].replace("_", "-") if option.words else ""
        if option.name in NO_COUNTERPART and written not in own:
            complaints.append(f"--{option.name.replace('_', '-')}: {NO_COUNTERPART[option.name]}")
        else:
            translated += translate(option, given, written in own)
    if complaints:
        raise ConfigError(f"SGLang has nothing like {'; '.join(complaints)}")
    return translated


def translate(option: Option, given: Given, is_own: bool) -> list[str]:
    if option.name in PARSERS and option.values:
        parser = option.values[-1]
        return [f"--{option.name.replace('_', '-')}", PARSERS[option.name].get(parser, parser)]
    return option.words if is_own else translate_unified(option, given)


def translate_unified(option: Option, given: Given) -> list[str]:
    """An option that SGLang has not, in its words; one that is not unified either stays as it is."""
    name = option.name
    if name in SAME and option.is_negated:
        return []  # SGLang's flags have no other side: left out, they are off
    if name in RENAMED:
        return [f"--{RENAMED[name]}", *option.values]
    if name in FLAGS:
        return FLAGS[name][truth(option)]
    if name in CHOICES:
        return choice(name, option.values[-1] if option.values else "")
    return COMPUTED[name](given) if name in COMPUTED else option.words


def choice(name: str, value: str) -> list[str]:
    choices = CHOICES[name]
    if value not in choices:
        raise ConfigError(f"--{name.replace('_', '-')} {value}: on SGLang it can be {', '.join(choices)}")
    return choices[value]


def truth(option: Option) -> int:
    """The index into FLAGS' pairs."""
    said = option.values[-1].lower() if option.values else "true"
    return int((said in ("false", "0", "no")) != option.is_negated)


def split_options(argv: Sequence[str]) -> list[Option]:
    """Words before the first option are an option without a name, so that nothing is lost."""
    options: list[Option] = []
    for word in argv:
        if re.match(r"--?[A-Za-z]", word):
            written, found, value = word.partition("=")
            name = written.lstrip("-").replace("-", "_")
            is_negated = name.startswith("no_") and name[3:] in TRANSLATED | NO_COUNTERPART.keys()
            options.append(Option(name[3:] if is_negated else name, [word], [value] if found else [], is_negated))
        elif options:
            options[-1].words.append(word)
            options[-1].values.append(word)
        else:
            options.append(Option("", [word], [], False))
    return options
