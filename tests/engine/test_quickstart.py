"""The main job, as the README tells it: one command, an answer, a second worker, deaths, and Ctrl-C."""

import concurrent.futures
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.support import ROOT, GatewayClient, Program, free_port, is_running, running, wait_until
from tests.test_docs import blocks, commands

pytestmark = pytest.mark.engine

START_TIMEOUT_S = 280.0
NOTICED_S = 10.0
DRAIN_LIMIT_S = 30.0
MODEL = "smollm2-135m-instruct"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


class Quickstart(Program):
    """scripts/quickstart in this checkout, whose .venv is installed."""

    def __init__(self, port: int, log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                ["scripts/quickstart", "--port", str(port)], cwd=ROOT, stdout=output, stderr=output,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self.pid = self.process.pid


@contextlib.contextmanager
def no_config_of_a_user(saved: Path) -> Iterator[None]:
    """quickstart writes config.yaml: a developer's own is put aside meanwhile."""
    config = ROOT / "config.yaml"
    if config.exists():
        config.rename(saved)
    try:
        yield
    finally:
        config.unlink(missing_ok=True)
        if saved.exists():
            saved.rename(config)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[tuple[Quickstart, GatewayClient]]:
    """quickstart, until it says ready; the last test of this file ends it."""
    folder = tmp_path_factory.mktemp("quickstart")
    with no_config_of_a_user(ROOT / "config.yaml.put-aside"):
        port = free_port()
        program, client = Quickstart(port, folder / "log"), GatewayClient(port)
        try:
            wait_until(lambda: "iChat is ready" in program.output() or program.process.poll(), "ready", START_TIMEOUT_S)
            assert program.process.poll() is None, program.output()
            yield program, client
        finally:
            client.http.close()
            program.end()


def worker_command(folder: Path, model: Path, port: int, url: str) -> list[str]:
    return ["serve.py", "--model", str(model), "--model-name", "by-hand", "--port", str(port),
            "--gateway-address", url, "--max-model-len", "512"]  # fmt: skip


def test_the_printed_and_documented_commands_answer_paris(started: tuple[Quickstart, GatewayClient]) -> None:
    program, client = started
    printed = re.search(r"^curl .*$", program.output(), re.MULTILINE)
    assert printed, program.output()
    documented = next(command for command in commands(ROOT / "README.md") if "chat/completions" in command)
    for command in (printed[0], documented.replace("http://localhost:4000", client.url)):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert "choices" in done.stdout
    snippet = blocks(ROOT / "README.md", "python")[0].replace("http://localhost:4000", client.url)
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=True)
    assert "Paris" in done.stdout


def test_the_openai_client_answers_paris_and_lists_the_model(started: tuple[Quickstart, GatewayClient]) -> None:
    with openai.OpenAI(base_url=f"{started[1].url}/v1", api_key="none") as client:
        whole = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
        assert "Paris" in str(whole.choices[0].message.content)
        stream = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(pieces) == whole.choices[0].message.content
        assert len(pieces) > 3
        assert MODEL in [model.id for model in client.models.list()]


def test_a_killed_engine_is_failed_at_once_and_running_again_by_itself(
    started: tuple[Quickstart, GatewayClient],
) -> None:
    _, client = started
    before = client.wait_for(MODEL)
    engines = psutil.Process(before["pid"]).children(recursive=True)
    core = next(process for process in engines if "EngineCore" in " ".join(process.cmdline()) + process.name())
    core.kill()
    wait_until(lambda: client.status(MODEL) == "failed", "failed", NOTICED_S)
    after = client.wait_for(MODEL, timeout_s=START_TIMEOUT_S)
    assert after["pid"] != before["pid"]
    wait_until(lambda: not any(is_running(process.pid) for process in engines), "nothing left of the first", 10)
    assert "Paris" in client.chat(MODEL, messages=QUESTION, temperature=0).text


def test_a_second_worker_joins_and_a_killed_one_leaves_nothing(
    started: tuple[Quickstart, GatewayClient], model_folder: Path, tmp_path: Path
) -> None:
    _, client = started
    argv = worker_command(tmp_path, model_folder, free_port(), client.url)
    with running(argv, tmp_path / "log") as by_hand:
        client.wait_for("by-hand", timeout_s=START_TIMEOUT_S)
        for model in (MODEL, "by-hand"):
            assert "Paris" in client.chat(model, messages=QUESTION, temperature=0).text
        children = psutil.Process(by_hand.pid).children(recursive=True)
        assert children
        with concurrent.futures.ThreadPoolExecutor() as pool:
            asking = [pool.submit(client.chat, "by-hand", max_tokens=400, ignore_eos=True)]
            wait_until(lambda: client.wait_for("by-hand")["in_flight"] == 1, "in flight")
            by_hand.process.kill()
            wait_until(lambda: client.status("by-hand") in ("unhealthy", "failed"), "noticed", NOTICED_S)
            assert [future.result().status_code for future in asking] == [502]
        wait_until(lambda: not any(is_running(child.pid) for child in children), "no engine process left", 5)
        assert client.chat("by-hand").status_code == 503
    with running(argv, tmp_path / "log2"):
        client.wait_for("by-hand", timeout_s=START_TIMEOUT_S)
        assert "Paris" in client.chat("by-hand", messages=QUESTION, temperature=0).text


def test_ctrl_c_ends_all_of_it(started: tuple[Quickstart, GatewayClient]) -> None:
    """With a log reader and a streaming client connected."""
    program, client = started
    worker_id = client.wait_for(MODEL)["worker_id"]
    family = [program.pid, *(child.pid for child in psutil.Process(program.pid).children(recursive=True))]
    worker = client.wait_for(MODEL)["pid"]
    family += [worker, *(child.pid for child in psutil.Process(worker).children(recursive=True))]
    story = {"model": MODEL, "prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "stream": True}
    with (
        client.http.stream("GET", f"/v1/logs/stream/{worker_id}", timeout=60) as log,
        client.http.stream("POST", "/v1/completions", json=story, timeout=60) as answer,
    ):
        tokens = answer.iter_lines()
        next(tokens)
        os.kill(program.pid, signal.SIGINT)
        assert list(log.iter_lines())
        with contextlib.suppress(httpx.HTTPError):
            list(tokens)
    assert program.wait(DRAIN_LIMIT_S + 5) == 0
    assert [pid for pid in family if is_running(pid)] == []
