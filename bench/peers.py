"""Other programs that stand where the gateway stands, set up to do the least: for comparison, where they are there."""

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml

from bench.answers import MODEL, request_body
from bench.children import BenchError, child, free_port, last_words
from bench.processes import Running, ask

START_TIMEOUT_S: Final = 120.0
POLL_S: Final = 0.1
BIN_FOLDERS: Final = ("bin", "usr/sbin", "sbin")
"""Where, in its own folder below ``--peer-dir``, a peer's command may be: a venv has the first, a .deb the second."""
NGINX_CONFIG: Final = """\
daemon off; master_process off; worker_processes 1; worker_rlimit_nofile 20000; pid {folder}/pid;
error_log stderr crit;
events {{ worker_connections 20000; }}
http {{
  access_log off; keepalive_requests 100000000; proxy_buffering off;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  upstream engine {{ {engines} keepalive 256; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer is to run: a folder of its own, its port, and the engines'."""

    folder: Path
    port: int
    engine_ports: Sequence[int]

    @property
    def urls(self) -> list[str]:
        """The engines'."""
        return [f"http://127.0.0.1:{port}" for port in self.engine_ports]


@dataclass(frozen=True, slots=True)
class Peer:
    """``arguments`` of its ``command``; ``share``: of the load, for one that costs so much that minutes would pass.

    ``by_text``: it writes answers anew, so that not their bytes but what they say is compared.
    """

    name: str
    command: str
    arguments: Callable[[Place], Sequence[str | Path]]
    share: float = 1.0
    by_text: bool = False
    env: Mapping[str, str] = field(default_factory=dict)

    def find(self, folder: Path | None) -> Path | None:
        """The command in its folder below ``folder``, else on PATH."""
        own = [folder / self.name / where / self.command for where in BIN_FOLDERS] if folder else []
        found = next((path for path in own if os.access(path, os.X_OK)), None)
        return found.absolute() if found else (Path(path) if (path := shutil.which(self.command)) else None)


def nginx(place: Place) -> list[str | Path]:
    config = place.folder / "nginx.conf"
    engines = " ".join(f"server 127.0.0.1:{port};" for port in place.engine_ports)
    config.write_text(NGINX_CONFIG.format(folder=place.folder, port=place.port, engines=engines))
    return ["-p", place.folder, "-e", "stderr", "-c", config]


def router(place: Place, *command: str) -> list[str | Path]:
    """vllm-router, and the two that come of the same root; with a choice to make they make it as ours does."""
    policy = "cache_aware" if len(place.urls) > 1 else "round_robin"
    return [
        *command, "--host", "127.0.0.1", "--port", str(place.port), "--prometheus-port", str(free_port()),
        "--worker-urls", *place.urls, "--policy", policy, "--log-level", "error",
    ]  # fmt: skip


def litellm(place: Place) -> list[str | Path]:
    config = place.folder / "config.yaml"
    models = [{"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"} for url in place.urls]
    entries = [{"model_name": MODEL, "litellm_params": model} for model in models]
    config.write_text(yaml.safe_dump({"model_list": entries}))
    port = str(place.port)
    return ["--config", config, "--host", "127.0.0.1", "--port", port, "--num_workers", "1", "--telemetry", "False"]


PEERS: Final = {
    peer.name: peer
    for peer in (
        Peer("nginx", "nginx", nginx),
        Peer("vllm-router", "vllm-router", router),
        Peer("smg", "smg", lambda place: router(place, "launch")),
        Peer("sglang-router", "sglang-router", lambda place: router(place, "launch")),
        Peer(
            "litellm", "litellm", litellm, share=0.02, by_text=True,
            env={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION",
                 "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"},
        ),
    )
}  # fmt: skip


def named_peers(words: str) -> list[Peer]:
    """``all``, ``none``, or names with commas between. Raises ValueError."""
    if words in ("all", "none"):
        return list(PEERS.values()) if words == "all" else []
    names = list(dict.fromkeys(words.split(",")))
    if unknown := [name for name in names if name not in PEERS]:
        raise ValueError(f"there is no peer {', '.join(unknown)}: name some of {', '.join(PEERS)}, or all, or none")
    return [PEERS[name] for name in names]


@contextlib.contextmanager
def running_peer(peer: Peer, command: Path, engine_ports: Sequence[int]) -> Iterator[Running]:
    """The peer, answering. Raises BenchError."""
    with tempfile.TemporaryDirectory(prefix="ichat-bench-") as folder:
        place = Place(Path(folder), free_port(), engine_ports)
        log = place.folder / "log"
        env = {**peer.env, "NO_PROXY": "127.0.0.1"}
        with child([command, *peer.arguments(place)], log, env) as process:
            with last_words(log, peer.name):
                wait_until_answering(peer.name, place.port, process)
            yield Running(process.pid, place.port)


def wait_until_answering(name: str, port: int, process: subprocess.Popen[str]) -> None:
    """Raises BenchError."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if is_answering(port):
                return
        time.sleep(POLL_S)
    raise BenchError(f"{name} {'ended' if process.poll() is not None else f'gave no answer in {START_TIMEOUT_S:g} s'}")


def is_answering(port: int) -> bool:
    status, _ = ask(port, "POST", "/v1/chat/completions", json.loads(request_body(0, 0)))
    return status == 200
