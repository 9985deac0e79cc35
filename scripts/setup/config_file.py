"""config.yaml: written where there is none; else read, only to know where the gateway will be and what it serves."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.setup.trouble import Trouble

DEFAULT_HOST = "0.0.0.0"  # noqa: S104 - what the gateway takes where config.yaml names none
DEFAULT_PORT = 4000
HOST_VARIABLE = "ICHAT_SERVER_SETTINGS__HOST"
PORT_VARIABLE = "ICHAT_SERVER_SETTINGS__PORT"
EVERYWHERE = {"", "0.0.0.0", "::", "localhost"}  # noqa: S104

_FRESH = """\
# Written by scripts/quickstart; from now on it is yours to change. config.yaml.example explains every key.
server_settings:
  host: 127.0.0.1  # this machine alone; 0.0.0.0 for everybody who reaches it
  port: {port}
  log_level: info

managed_workers:
  - model_name: {model_name}
    model_path: {model_path}
    backend: vllm
    port: {worker_port}
"""

_READ = """\
import json, sys, yaml
try:
    print(json.dumps(yaml.safe_load(open(sys.argv[1], encoding="utf-8")), default=str))
except (OSError, ValueError, yaml.YAMLError) as error:
    sys.exit(f"{sys.argv[1]} cannot be read: " + " ".join(str(error).split()))
"""


@dataclass(frozen=True, slots=True)
class Model:
    """What a fresh config.yaml serves. ``small``: it needs no more than a part of a GPU."""

    name: str
    path: str
    small: bool = False


@dataclass(frozen=True, slots=True)
class Address:
    """Where the gateway listens, and where this machine reaches it."""

    host: str
    port: int

    @property
    def reachable_host(self) -> str:
        return "127.0.0.1" if self.host in EVERYWHERE else self.host

    @property
    def url(self) -> str:
        host = self.reachable_host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Config:
    """What quickstart has to know of a config.yaml that it did not write."""

    address: Address
    models: tuple[Model, ...] = ()
    wants_key: bool = False
    log_dir: str = "logs"

    def serves(self, path: str) -> bool:
        return any(model.path == path for model in self.models)


def fresh_config(model: Model, port: int, worker_port: int, gpu: bool) -> str:
    # JSON's strings are YAML's: a path with a colon or a quote in it stays what it is.
    words = {"model_name": model.name, "model_path": model.path}
    quoted = {key: json.dumps(value, ensure_ascii=False) for key, value in words.items()}
    text = _FRESH.format(port=port, worker_port=worker_port, **quoted)
    if gpu:
        text += "    gpu_ids: [0]\n"
    if gpu and model.small:
        text += "    gpu_memory_utilization: 0.3\n"
    return text


def write_config(path: Path, text: str) -> None:
    unfinished = path.with_suffix(".yaml.new")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def read_config(path: Path, python: Path, environ: Mapping[str, str]) -> Config:
    """By the environment's Python, since reading YAML needs a package. Raises Trouble."""
    command = [str(python), "-c", _READ, str(path)]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode:
        raise Trouble(
            f"{asked.stderr.strip() or f'{path} cannot be read'}\nCorrect it, or remove it to get a fresh one."
        )
    values = json.loads(asked.stdout)
    return interpret(values if isinstance(values, dict) else {}, environ)


def interpret(values: Mapping[str, Any], environ: Mapping[str, str]) -> Config:
    """As far as it can be understood: what is wrong in it, the gateway itself says best."""
    server = values.get("server_settings")
    server = server if isinstance(server, dict) else {}
    host = environ.get(HOST_VARIABLE) or str(server.get("host") or DEFAULT_HOST)
    port = whole_number(environ.get(PORT_VARIABLE)) or whole_number(server.get("port")) or DEFAULT_PORT
    workers = values.get("managed_workers")
    models = [worker for worker in workers if isinstance(worker, dict)] if isinstance(workers, list) else []
    return Config(
        Address(host, port),
        tuple(Model(str(one.get("model_name", "")), str(one.get("model_path", ""))) for one in models),
        wants_key=bool(server.get("keys")),
        log_dir=str(server.get("log_dir") or "logs"),
    )


def whole_number(value: object) -> int:
    """0 where it is none."""
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() else 0


def model_of(given: str, folder: Path) -> Model:
    """What ``--model`` names: a folder (relative to where the person is), or a hub id. Raises Trouble."""
    path = (folder / Path(given).expanduser()).resolve()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise Trouble(f"--model {given}: {path} holds no config.json, so it is no model folder.")
        return Model(path.name, str(path))
    parts = given.split("/")
    looks_like_a_path = given.startswith((".", "/", "~")) or len(parts) != 2 or not all(parts)
    if looks_like_a_path or any(char.isspace() for char in given):
        raise Trouble(f"--model {given}: there is no folder {path}, and a hub id looks like organisation/model.")
    return Model(given, given)
