"""What tests with real engines stand on."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.setup import demo_model
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
