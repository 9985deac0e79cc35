"""What tests with real engines stand on."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.setup import demo_model
from tests.engine import models
from tests.support import ROOT


@pytest.fixture(scope="session")
def vllm_installed() -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here")


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The demo model's; made once, which takes half a minute."""
    folder = demo_model.demo_model_folder()
    if not demo_model.is_complete(folder) and importlib.util.find_spec(demo_model.PACKAGE) is None:
        pytest.skip("the demo model's package is not installed here")
    subprocess.run([sys.executable, "scripts/setup/demo_model.py"], cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """Sees images, and says random words."""
    folder = tmp_path_factory.mktemp("llava")
    models.create_llava(folder, model_folder)
    return folder


@pytest.fixture(scope="session")
def tiny_whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hears, and says random letters."""
    folder = tmp_path_factory.mktemp("whisper")
    models.create_whisper(folder)
    return folder


@pytest.fixture(scope="session")
def lora_adapters(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[str, Path]:
    """Two adapters of the demo model, "a" and "b", which make it say different things."""
    folder = tmp_path_factory.mktemp("lora")
    for seed, name in enumerate("ab", start=1):
        models.create_lora(folder / name, model_folder, seed)
    return {name: folder / name for name in "ab"}


@pytest.fixture(scope="session")
def tools_template() -> Path:
    """A chat template for the demo model that tells it of tools."""
    return Path(__file__).with_name("hermes.jinja")
