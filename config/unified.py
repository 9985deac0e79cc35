"""The unified engine arguments: vLLM's names, which a managed worker may write beside iChat's own keys.

An argument that is not in this list goes into ``backend_args``, which takes whatever the installed engine takes.
"""

import json
from collections.abc import Mapping
from typing import Any

UNIFIED_ARGUMENTS = frozenset(
    {
        # model
        "tokenizer", "tokenizer_mode", "tokenizer_revision", "revision", "code_revision", "trust_remote_code",
        "dtype", "quantization", "load_format", "download_dir", "model_loader_extra_config", "config_format",
        "hf_overrides", "max_model_len", "seed", "runner", "convert", "generation_config", "pooler_config",
        # parallelism
        "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "enable_expert_parallel",
        "distributed_executor_backend", "nnodes", "node_rank", "master_addr", "master_port",
        "disable_custom_all_reduce",
        # memory and cache
        "gpu_memory_utilization", "kv_cache_memory_bytes", "kv_cache_dtype", "block_size", "enable_prefix_caching",
        "cpu_offload_gb", "num_gpu_blocks_override", "enable_sleep_mode",
        # scheduling
        "max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill", "scheduling_policy", "async_scheduling",
        "enforce_eager", "compilation_config", "speculative_config", "attention_backend",
        # serving
        "chat_template", "chat_template_content_format", "response_role", "enable_auto_tool_choice",
        "tool_call_parser", "tool_parser_plugin", "reasoning_parser", "structured_outputs_config", "max_logprobs",
        "limit_mm_per_prompt", "enable_prompt_tokens_details",
        # adapters
        "enable_lora", "lora_modules", "max_loras", "max_lora_rank", "lora_dtype", "max_cpu_loras",
        # logs
        "disable_log_stats", "enable_log_requests", "max_log_len",
    }
)  # fmt: skip

WORKER_ARGUMENTS = frozenset({"allowed_media_domains", "allowed_local_media_path"})
"""Of vLLM's names too, but iChat's own (config/args.py): they hold for every engine."""


def to_argv(arguments: Mapping[str, Any]) -> list[str]:
    """``{"max_model_len": 2048, "enforce_eager": True}`` as ``["--max-model-len", "2048", "--enforce-eager"]``.

    ``True`` becomes a flag, ``False`` the ``--no-`` flag, a list several words, a mapping one JSON word; ``None`` is
    left out, so that a configuration can say "the engine's default" in so many words.
    """
    argv: list[str] = []
    for name, value in arguments.items():
        option = "--" + name.lstrip("-").replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            argv.append(option if value else "--no-" + option[2:])
        elif isinstance(value, list | tuple):
            argv += [option, *(to_word(item) for item in value)]
        else:
            word = to_word(value)  # one that looks like an option must not be taken for one
            argv += [f"{option}={word}"] if word.startswith("-") else [option, word]
    return argv


def to_word(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
