"""Imports the engine and its argument parser as a worker would: what fails here would fail at the first start."""

import importlib
import os
import sys

from backends import cpu_shims

PARSER_MODULES = (
    "vllm.entrypoints.launchers.cli_args",
    "vllm.entrypoints.common.cli_args",
    "vllm.entrypoints.openai.cli_args",
)
"""Where ``make_arg_parser`` lives depends on the version: 0.30 to 0.32, from 0.33 on, before."""


def main() -> int:
    try:
        return check()
    except ImportError as error:
        print(f"error: vLLM cannot be imported: {error}")
        return 1


def check() -> int:
    import torch

    if not torch.cuda.is_available():
        cpu_shims.activate(os.environ)  # as the worker does

    import vllm
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    for name in PARSER_MODULES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(error.name or " "):
                raise
            continue
        module.make_arg_parser(FlexibleArgumentParser())
        print(f"vLLM {vllm.__version__} imports, with its arguments from {name}")
        return 0
    print(f"error: vLLM {vllm.__version__} has its argument parser in none of {', '.join(PARSER_MODULES)}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
