"""One engine for all tests of a module that leave it as it is, behind a real gateway."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.setup import demo_model
from tests.engine.support import MODEL_NAME, EngineWorker, end_in_order, vllm_worker
from tests.support import ROOT, GatewayClient, gateway


@pytest.fixture(scope="session")
def vllm_installed() -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here")


@pytest.fixture(scope="session")
def model_folder(vllm_installed: None) -> Path:
    """The demo model's; made once, which takes half a minute."""
    folder = demo_model.demo_model_folder()
    if not demo_model.is_complete(folder) and importlib.util.find_spec(demo_model.PACKAGE) is None:
        pytest.skip("the demo model's package is not installed here")
    subprocess.run([sys.executable, "scripts/setup/demo_model.py"], cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayClient]:
    """A gateway without workers of its own."""
    with gateway(tmp_path_factory.mktemp("gateway")) as (_, client):
        yield client


@pytest.fixture(scope="module")
def worker(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, front: GatewayClient
) -> Iterator[EngineWorker]:
    """A worker that the gateway knows; at the end it is asked to stop, and must do so in order."""
    address = ["--gateway-address", front.url, "--heartbeat-interval", "1"]
    with vllm_worker(tmp_path_factory.mktemp("worker"), model_folder, *address) as worker:
        front.wait_for(MODEL_NAME)
        yield worker
        end_in_order(worker)
