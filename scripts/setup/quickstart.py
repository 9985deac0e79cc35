"""scripts/quickstart: checks, installing, the demo model, config.yaml, the start."""

import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from scripts.setup.arguments import QuickstartArguments, parse_quickstart_arguments
from scripts.setup.config_file import (
    DEFAULT_PORT,
    PORT_VARIABLE,
    Config,
    Model,
    fresh_config,
    model_of,
    read_config,
    whole_number,
    write_config,
)
from scripts.setup.console import Console
from scripts.setup.demo_model import SERVED_NAME, demo_model_folder, is_complete
from scripts.setup.gateway_api import ask_gateway
from scripts.setup.gateway_process import GatewayProcess
from scripts.setup.installation import Installation
from scripts.setup.machine import has_nvidia_gpu, require_linux
from scripts.setup.port import is_free, next_free, require_free
from scripts.setup.program import run_program
from scripts.setup.room import installing_needs, require_room
from scripts.setup.startup import Startup
from scripts.setup.trouble import Trouble

ROOT = Path(__file__).resolve().parents[2]
FIRST_WORKER_PORT = 8001


class Quickstart:
    """One run. Every method raises Trouble where it cannot go on."""

    def __init__(
        self, arguments: QuickstartArguments, root: Path, console: Console, environ: Mapping[str, str], gpu: bool
    ) -> None:
        self._arguments = arguments
        self._root = root
        self._console = console
        self._gpu = gpu
        port = {PORT_VARIABLE: str(arguments.port)} if arguments.port else {}
        self._environ = {**environ, **port}
        self._config_path = root / "config.yaml"
        self._demo_folder = demo_model_folder(environ)
        self._installation = Installation(root, console, gpu=gpu, dev=False, environ=environ)

    def run(self) -> int:
        fresh = self._choose_model()
        self._check_port()
        self._install(demo=fresh is not None and self._lacks_demo_model(fresh.path))
        config = self._configure(fresh)
        if self._arguments.install_only:
            self._console.say("Installed. Start it with:  scripts/quickstart")
            return 0
        return self._start(config)

    def _choose_model(self) -> Model | None:
        """What a fresh config.yaml is to serve; None where there is a config.yaml already."""
        given = self._arguments.model
        wanted = model_of(given, Path.cwd()) if given else None
        if not self._config_path.exists():
            return wanted or Model(SERVED_NAME, str(self._demo_folder), small=True)
        if wanted is not None:
            config = self._read_config()
            if config is None or not config.serves(wanted.path):
                raise Trouble(
                    f"--model {given}: there is a config.yaml already, and that says what is served.\n"
                    f"Edit it (managed_workers in {self._config_path}), or remove it to get a fresh one for this model."
                )
        return None

    def _check_port(self) -> None:
        """As early as the port is known: before downloads, where config.yaml need not be asked for it."""
        if self._arguments.install_only:
            return
        config = self._read_config()
        given = whole_number(self._environ.get(PORT_VARIABLE))
        if config is not None:
            require_free(config.address.port, config.address.host)
        elif given or not self._config_path.exists():
            require_free(given or DEFAULT_PORT)

    def _install(self, demo: bool) -> None:
        if self._installation.is_current() and not demo:
            return
        if not self._installation.is_current():
            require_room(installing_needs(self._root, self._demo_folder, self._gpu, self._environ))
            self._console.say(f"Installing for {'an NVIDIA GPU' if self._gpu else 'the CPU: no NVIDIA GPU is here'}.")
        self._installation.run(demo)

    def _lacks_demo_model(self, path: str) -> bool:
        return path == str(self._demo_folder) and not is_complete(self._demo_folder)

    def _configure(self, fresh: Model | None) -> Config:
        if fresh is not None:
            port = whole_number(self._environ.get(PORT_VARIABLE)) or DEFAULT_PORT
            worker_port = next_free(FIRST_WORKER_PORT, lambda number: number == port or not is_free(number))
            write_config(self._config_path, fresh_config(fresh, port, worker_port, self._gpu))
            self._console.say(f"✓ wrote {self._config_path}")
        config = read_config(self._config_path, self._installation.environment.python, self._environ)
        if fresh is None:
            self._speak_of(config)
        return config

    def _speak_of(self, config: Config) -> None:
        """config.yaml is somebody's own: what it lacks is made, and what stands above it is said."""
        self._console.say(f"✓ {self._config_path} is used as it is")
        if self._arguments.port:
            self._console.say(f"  --port {self._arguments.port} stands above it, for this run")
        if any(self._lacks_demo_model(model.path) for model in config.models):
            self._install(demo=True)

    def _read_config(self) -> Config | None:
        """None where there is no config.yaml, or nothing yet that could read it."""
        if not self._config_path.exists() or not self._installation.is_current():
            return None
        return read_config(self._config_path, self._installation.environment.python, self._environ)

    def _start(self, config: Config) -> int:
        require_free(config.address.port, config.address.host)
        gateway = GatewayProcess()
        python = str(self._installation.environment.python)
        gateway.start([python, "gateway.py", "--config", str(self._config_path)], self._environ, self._root)
        return Startup(gateway, config, self._console, partial(ask_gateway, config.address)).run()


def main() -> int:
    arguments = parse_quickstart_arguments(sys.argv[1:])
    return run_program(lambda console: quickstart(arguments, console))


def quickstart(arguments: QuickstartArguments, console: Console) -> int:
    require_linux()
    return Quickstart(arguments, ROOT, console, os.environ, gpu=has_nvidia_gpu()).run()


if __name__ == "__main__":
    sys.exit(main())
