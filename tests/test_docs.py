"""What README and doc/ tell a user to do, done: every command is run, by a test of this file or by the one named."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from config.admission import KeyLimits
from config.load import load_settings
from config.settings import ClientKey
from tests.support import ROOT, GatewayClient, fake_worker, free_port, gateway, wait_until

pytestmark = pytest.mark.share("programs")

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "README.zh-CN.md", "bench/README.md")),
    *sorted((ROOT / "doc").glob("*.md")),
]
MODEL = "smollm2-135m-instruct"
RUN_ELSEWHERE = {
    "scripts/quickstart": "tests/engine/test_quickstart.py",
    "scripts/test": ".ci/run",
    ".venv/bin/python -m bench.relay": "tests/test_bench.py",
    ".venv/bin/python -m bench.relay --repetitions 1 --gateway gateway.py": "tests/test_bench.py",
    ".venv/bin/python -m bench.streams": "tests/test_bench.py",
    ".venv/bin/python -m bench.soak": "tests/test_bench.py",
    ".venv/bin/python -m bench.routing": "tests/test_bench.py",
}
"""Commands that are too large to be run from here."""


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)


def commands(document: Path) -> list[str]:
    return [block.strip() for block in blocks(document, "bash")]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayClient]:
    """A gateway whose fake model has the name of the demo model."""
    folder = tmp_path_factory.mktemp("docs")
    with gateway(folder, managed_workers=[fake_worker(MODEL)]) as (_, client):
        client.wait_for(MODEL)
        yield client


@pytest.fixture
def adapter(tmp_path: Path) -> str:
    (tmp_path / "adapter_config.json").write_text("{}")
    return str(tmp_path)


def here(command: str, client: GatewayClient, adapter: str = "") -> str:
    """A documented command for this machine: the port that is free, the engine that needs no model."""
    worker_id = client.wait_for(MODEL)["worker_id"]
    return (
        command.replace("http://localhost:4000", client.url)
        .replace("WORKER_ID", worker_id)
        .replace("/path/to/adapter", adapter)
        .replace("curl -N", "curl -N -m 2")
        .replace("curl ", "curl -sS --fail-with-body ")
        .replace("--model /path/to/model", "--backend fake --model none")
        .replace("--port 8002", f"--port {free_port()}")
        .replace(".venv/bin/python", sys.executable)
    )


ALL_COMMANDS = list(dict.fromkeys(command for document in DOCUMENTS for command in commands(document)))
"""Once each: the READMEs have the same ones."""


@pytest.mark.parametrize("command", [command for command in ALL_COMMANDS if command.startswith("curl")])
def test_a_documented_curl_works(command: str, served: GatewayClient, adapter: str) -> None:
    done = subprocess.run(["bash", "-ec", here(command, served, adapter)], capture_output=True, text=True, check=False)
    endless = 28 if "curl -N" in command else 0  # a live log is read until curl's own limit
    assert done.returncode == endless, done.stdout + done.stderr
    assert done.stdout


SNIPPETS = list(dict.fromkeys(block for document in DOCUMENTS for block in blocks(document, "python")))


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_documented_python_snippet_works(snippet: str, served: GatewayClient) -> None:
    code = snippet.replace("http://localhost:4000", served.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 16, "the fake engine's tokens"


@pytest.mark.parametrize("command", [command for command in ALL_COMMANDS if "serve.py" in command])
def test_the_documented_worker_joins(command: str, served: GatewayClient) -> None:
    process = subprocess.Popen(["bash", "-c", f"exec env {here(command, served)}"], cwd=ROOT)
    try:
        served.wait_for("my-model")
        assert served.chat("my-model").status_code == 200
    finally:
        process.terminate()
        assert process.wait(20) == 0
    wait_until(lambda: served.status("my-model") != "healthy", "gone")


def test_the_documented_gateway_command_takes_the_example() -> None:
    for document in (ROOT / "README.md", ROOT / "README.zh-CN.md"):
        assert ".venv/bin/python gateway.py --config config.yaml" in commands(document)


def test_the_documented_way_to_make_a_key_fits_the_settings(tmp_path: Path) -> None:
    command = next(command for command in commands(ROOT / "README.md") if command.startswith("KEY="))
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    config = tmp_path / "config.yaml"
    key = {"name": "alice", "hash": f"sha256:{done.stdout.split()[0]}"}
    config.write_text(yaml.safe_dump({"server_settings": {"keys": [key]}}))
    assert load_settings(config, {}).server_settings.keys[0].name == "alice"


def test_every_documented_command_is_run_by_a_test() -> None:
    run_here = ("curl", "KEY=", ".venv/bin/python gateway.py --config config.yaml")
    for document in DOCUMENTS:
        for command in commands(document):
            known = command.startswith(run_here) or "serve.py" in command or command in RUN_ELSEWHERE
            assert known, f"{document.name}: {command!r} is run by no test"
    for file in RUN_ELSEWHERE.values():
        assert (ROOT / file).exists(), file


def test_both_readmes_say_the_same() -> None:
    """The same commands, snippets, headings and links, in the same order."""
    english, chinese = (ROOT / "README.md").read_text(), (ROOT / "README.zh-CN.md").read_text()
    for language in ("bash", "python"):
        assert blocks(ROOT / "README.md", language) == blocks(ROOT / "README.zh-CN.md", language)
    for pattern in (r"^(#+) ", r"\]\(((?!README)[^)]+)\)", r"^\| "):
        assert re.findall(pattern, english, re.MULTILINE) == re.findall(pattern, chinese, re.MULTILINE), pattern


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            assert link.startswith("https://") or (document.parent / link).exists(), f"{document.name}: {link}"


def test_the_example_configuration_loads_and_shows_every_key_with_its_default() -> None:
    example = ROOT / "config.yaml.example"
    settings = load_settings(example, {})
    fresh = type(settings.server_settings)()
    assert settings.server_settings == fresh
    text = example.read_text()
    assert settings.admission == type(settings.admission)()
    named = (settings, settings.server_settings, settings.admission, settings.managed_workers[0])
    sections: list[type[BaseModel]] = [*(type(section) for section in named), ClientKey, KeyLimits]
    for section in sections:
        for key in section.model_fields:
            assert re.search(rf"^[ #-]*{key}:", text, re.MULTILINE), f"{key} is not explained"


def test_the_map_of_rooms_is_that_of_the_house() -> None:
    from tests.test_house import ROOMS

    text = (ROOT / "doc" / "structure.md").read_text()
    assert {room for room in ROOMS if f"| `{room}/` |" in text} == ROOMS


def test_no_address_of_this_machine_is_committed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    home = f"{Path.home()}/"
    for name in tracked:
        text = (ROOT / name).read_text(errors="replace")
        assert str(ROOT) not in text, name
        assert home not in text, name


def test_the_packaged_version_is_the_changelogs() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version and f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text()
