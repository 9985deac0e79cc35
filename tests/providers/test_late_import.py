"""LiteLLM is imported late, and is quiet. In a process of its own: here it may be imported already."""

import os
import subprocess
import sys

import pytest

from tests.support import ROOT

pytestmark = [pytest.mark.share("processes"), pytest.mark.timeout(60)]


ALONE = """
import asyncio, os, socket, sys
from config.providers import ProviderSettings
from relay.providers.providers import Providers
from utils.common import calm_garbage_collector

called = []
socket.getaddrinfo = lambda *a, **k: called.append(a) or (_ for _ in ()).throw(OSError("no network"))

async def main():
    calm_garbage_collector()  # as the gateway does
    assert "litellm" not in sys.modules, "imported at the top"
    empty = Providers(ProviderSettings())
    empty.start()
    await asyncio.sleep(0)
    await empty.close()
    assert "litellm" not in sys.modules, "imported for nothing"
    entry = {"model_name": "said", "litellm_params": {"model": "openai/m", "mock_response": "hello"}}
    providers = Providers(ProviderSettings.model_validate({"model_list": [entry]}))
    providers.start()
    body = b'{"messages": [{"role": "user", "content": "hi"}]}'
    assert b"hello" in (await providers.ask("/v1/chat/completions", body, "said", "r")).body
    await providers.close()
    import litellm
    assert "FROM_DOTENV" not in os.environ, "an .env file was read"
    assert not litellm.callbacks and not litellm.input_callback, "callbacks are left"
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.wait_for(asyncio.gather(*others), 10)  # none is endless

asyncio.run(main())
assert not called, called
"""


def test_it_is_imported_late_prints_nothing_and_calls_nobody(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("alone")
    (folder / ".env").write_text("FROM_DOTENV=1\n")
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""
