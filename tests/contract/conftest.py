"""Every backend in turn, behind a real gateway: one worker of each for all tests, which leave it as it is."""

import importlib.util
from collections.abc import Iterator

import pytest

from tests.engine.conftest import model_folder  # noqa: F401 - a fixture
from tests.engine.support import MODEL_NAME, EngineWorker, end_in_order, engine_worker
from tests.support import GatewayClient, gateway

REAL = [pytest.param(name, marks=pytest.mark.engine) for name in ("vllm", "sglang")]


def model_of(backend: str, request: pytest.FixtureRequest) -> str:
    """What the backend loads; skips where its engine is not installed."""
    if backend not in ("vllm", "sglang"):
        return "none"
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed here")
    return str(request.getfixturevalue("model_folder"))


@pytest.fixture(scope="session", params=["fake", *REAL])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def front(tmp_path_factory: pytest.TempPathFactory, backend: str) -> Iterator[GatewayClient]:
    """A gateway without workers of its own."""
    with gateway(tmp_path_factory.mktemp(f"gateway-{backend}")) as (_, client):
        yield client


@pytest.fixture(scope="session")
def worker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, backend: str, front: GatewayClient
) -> Iterator[EngineWorker]:
    """A worker that the gateway knows; at the end it is asked to stop, and must do so in order."""
    address = ["--gateway-address", front.url, "--heartbeat-interval", "1"]
    with engine_worker(tmp_path_factory.mktemp(backend), backend, model_of(backend, request), *address) as worker:
        front.wait_for(MODEL_NAME)
        yield worker
        end_in_order(worker)


@pytest.fixture(params=REAL)
def engine(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A backend with processes of its own, and what it loads."""
    backend = str(request.param)
    return backend, model_of(backend, request)
