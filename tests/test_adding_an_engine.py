"""doc/adding-an-engine.md, followed step by step in a copy of the project."""

import re
import shutil
from pathlib import Path

import httpx
import pytest

from tests.support import ROOT, free_port, running, wait_until

pytestmark = pytest.mark.share("processes")

DOCUMENT = ROOT / "doc" / "adding-an-engine.md"
ROOMS = ("backends", "config", "monitor", "utils", "worker")


def snippets() -> dict[str, str]:
    found = re.findall(r"^```python title=(\S+)\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    return dict(found)


def test_an_engine_is_one_file_and_one_line(tmp_path: Path) -> None:
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "serve.py", tmp_path)
    steps = snippets()
    (tmp_path / "backends/echo_backend.py").write_text(steps["backends/echo_backend.py"])
    line, registry = steps["backends/__init__.py"], tmp_path / "backends/__init__.py"
    assert line.count("\n") == 1
    registry.write_text(registry.read_text().replace("BACKENDS = {\n", f"BACKENDS = {{\n{line}"))
    port = free_port()
    argv = [str(tmp_path / "serve.py"), "--backend", "echo", "--model", "any", "--port", str(port)]
    with running(argv, tmp_path / "log", {"PYTHONPATH": str(tmp_path)}) as program:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: httpx.get(f"{url}/health", trust_env=False, verify=False).status_code == 200, "ready")
        answer = httpx.post(
            f"{url}/v1/completions", json={"model": "any", "prompt": "hello"}, trust_env=False, verify=False
        )
        assert answer.json()["choices"][0]["text"] == "hello"
        assert "ichat_worker_engine_steps_total 2.0" in httpx.get(f"{url}/metrics", trust_env=False, verify=False).text
        program.process.terminate()
        assert program.wait() == 0, program.output()
