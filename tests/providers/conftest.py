"""A worker of ours on the fake engine stands in for a provider; servers of scripted bytes do in the tests."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from relay.providers.providers import Providers
from tests.providers.double import entry, opened, settings_of
from tests.support import free_port, running, wait_until


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a worker on the fake engine."""
    port = free_port()
    argv = ["serve.py", "--model", "none", "--model-name", "m", "--backend", "fake", "--port", str(port)]
    with running(argv, tmp_path_factory.mktemp("provider") / "worker.log"):
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: httpx.get(f"{url}/ready", trust_env=False, verify=False).status_code == 200, "the worker")
        yield f"{url}/v1"


@pytest.fixture(scope="module")
async def providers(base: str) -> AsyncIterator[Providers]:
    settings = settings_of(
        entry("ext", base),
        entry("hosted", base, "hosted_vllm/m"),
        entry("lab/*", base, "openai/*"),
        entry("said", base, mock_response="hello there"),
        router_settings={"model_group_alias": {"alias": "ext", "hush": {"model": "ext", "hidden": True}}},
    )
    async with opened(settings) as providers:
        yield providers
