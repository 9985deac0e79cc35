"""SGLangBackend: SGLang's tokenizer manager and OpenAI app within this process; its schedulers are spawned children.

Runs SGLang 0.5.23. All of SGLang is imported here, and late: its import alone takes seconds.
"""

import argparse
import asyncio
import atexit
import contextlib
import importlib
import importlib.util
import logging
import os
import signal
from collections.abc import MutableMapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Final, NoReturn

from backends import cpu_shims
from backends.base import ASGIApp, BaseBackend, Doors, EngineDied, Progress, kill_children
from backends.complaints import complaints_as_config_errors, explain_nearest, one_sentence
from backends.engine_arguments import check_model_folder, given_options, shown_arguments
from backends.engine_thread import EngineThread
from backends.sglang_app import SGLangApp
from backends.sglang_arguments import NO_GRAPHS, to_sglang
from backends.status import EngineFacts, WorkerStatus
from config.args import WorkerArguments
from utils.common import package_version
from utils.errors import ConfigError, IChatError
from utils.logger import EventLogger

IMPORTS: Final = ("transformers", "sglang.srt.server_args", "sglang.srt.entrypoints.http_server")
LOADING_EXIT_S: Final = 15.0
LOADING_POLL_S: Final = 0.2
FOREIGN: Final = {
    "grpc_port": "a worker speaks HTTP",
    "enable_http2": "a worker speaks HTTP/1.1",
    "ssl_keyfile": "TLS ends at the gateway",
    "ssl_certfile": "TLS ends at the gateway",
    "use_ray": "start the workers on the nodes themselves",
}
"""Arguments that SGLang knows, but that belong to its own server, which a worker is not."""

CPU_DEFAULTS: Final[dict[frozenset[str], list[str]]] = {
    frozenset({"device"}): ["--device", "cpu"],
    frozenset({"attention-backend", "decode-attention-backend", "prefill-attention-backend"}): [
        "--attention-backend", "torch_native",
    ],
    frozenset({"mem-fraction-static"}): ["--mem-fraction-static", "0.2"],
    frozenset({"max-total-tokens"}): ["--max-total-tokens", "8192"],
    frozenset({"cuda-graph-backend-decode", "cuda-graph-backend-prefill", "disable-cuda-graph"}): NO_GRAPHS,
    frozenset({"dtype"}): ["--dtype", "float32"],  # CPUs without AMX or AVX512-BF16 emulate the short floats
}  # fmt: skip
"""What SGLang needs on a machine without a GPU, where the user gave none of the options on the left."""

logger = EventLogger("backend")


class SGLangBackend(BaseBackend):
    name: ClassVar[str] = "sglang"

    def __init__(self, arguments: WorkerArguments, status: WorkerStatus, doors: Doors) -> None:
        super().__init__(arguments, status, doors)
        self._version = package_version("sglang")
        self._thread = EngineThread("sglang")
        self._lifespan = contextlib.AsyncExitStack()
        self._engine: Any = None
        self._key = ""
        self._steps = 0
        self._quit = False

    @property
    def engine_name(self) -> str:
        return f"SGLang {self._version}"

    @classmethod
    def describe_arguments(cls) -> str:
        import torch

        if not torch.cuda.is_available():
            os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
            cpu_shims.activate(os.environ)
        from sglang.srt.server_args import ServerArgs

        parser = argparse.ArgumentParser(prog="serve.py", add_help=False)
        ServerArgs.add_cli_args(parser)
        return parser.format_help()

    # -- start -----------------------------------------------------------------------------------------------------

    async def create_engine(self) -> ASGIApp:
        given = given_options(self.arguments.engine_argv)
        if importlib.util.find_spec("sglang") is None:
            raise ConfigError("--backend sglang: SGLang is not installed here: install ichat[sglang]")
        check_model_folder(self.arguments.model, given)
        # SGLang's children report trouble by SIGQUIT, whose default is to end this process without a word.
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, self._note_quit)
        try:
            return await self._load()
        except IChatError:
            raise
        except Exception as error:
            raise EngineDied(explain_failed_start(error)) from error

    async def _load(self) -> ASGIApp:
        torch = await self._thread.run(importlib.import_module, "torch")
        on_cpu = not torch.cuda.is_available()
        prepare_environment(os.environ, self.arguments.model, on_cpu=on_cpu)
        if on_cpu:
            cpu_shims.activate(os.environ)
        for module in IMPORTS:
            await self._thread.run(importlib.import_module, module)
        with complaints_as_config_errors(self.engine_name):
            args, shown = await self._thread.run(self._parse, on_cpu)
        await self._thread.run(self._start_engine, args)
        app = await self._create_app(args)
        manager = self._engine.tokenizer_manager
        self.status.learn(
            EngineFacts(
                version=self._version,
                tasks=tasks_of(manager),
                max_model_len=manager.context_len,
                capacity=self._scheduler_info.get("max_running_requests") or args.max_running_requests,
                arguments=shown,
            )
        )
        return SGLangApp(app, tasks_of(manager))

    def _parse(self, on_cpu: bool) -> tuple[Any, dict[str, Any]]:
        """SGLang's arguments, and those to show. Raises ConfigError, before anything is loaded."""
        from sglang.srt.server_args import ServerArgs

        parser = self._create_parser()
        ServerArgs.add_cli_args(parser)
        defaults = {action.dest: action.default for action in parser._actions}
        wanted = to_sglang(self.arguments.engine_argv, parser._option_string_actions)
        if on_cpu:
            wanted = [*cpu_argv(given_options(wanted)), *wanted]
        own = ["--model-path", self.arguments.model, "--served-model-name", self.arguments.model_name]
        own += ["--host", self.arguments.host, "--port", str(self.port), "--skip-server-warmup", "--enable-metrics"]
        parsed = parser.parse_args([*own, *wanted])
        foreign = [name for name in FOREIGN if getattr(parsed, name, None)]
        if foreign:
            words = "; ".join(f"--{name.replace('_', '-')}: {FOREIGN[name]}" for name in foreign)
            raise ConfigError(f"a worker does not take these arguments of {self.engine_name}: {words}")
        parsed._radix_eviction_policy_explicitly_set = "radix-eviction-policy" in given_options(wanted)
        return ServerArgs.from_cli_args(parsed), shown_arguments(vars(parsed), defaults)

    def _create_parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(prog="serve.py", allow_abbrev=False, add_help=False)

        def complain(message: str) -> NoReturn:
            kind, found, words = message.partition("unrecognized arguments: ")
            if kind or not found:
                raise ConfigError(f"{self.engine_name}: {one_sentence(message)}")
            options = [word.partition("=")[0] for word in words.split() if word.startswith("-")]
            if not options:
                raise ConfigError(f"{self.engine_name} does not know what {words.split()[0]!r} belongs to")
            known = parser._option_string_actions
            raise ConfigError("; ".join(explain_nearest(option, known, self.engine_name) for option in options))

        parser.error = complain  # type: ignore[method-assign]
        return parser

    def _start_engine(self, args: Any) -> None:
        """Blocks until the weights are loaded. The engine is kept here: nobody may wait for it any more."""
        from sglang.srt.entrypoints.engine import Engine

        # It prints all its arguments, keys too; what a worker runs with is in its heartbeat, keys masked.
        logging.getLogger(Engine.__module__).addFilter(lambda record: "server_args=" not in record.getMessage())
        self._engine = Engine(server_args=args)

    @property
    def _scheduler_info(self) -> dict[str, Any]:
        infos: list[dict[str, Any]] = self._engine._scheduler_init_result.scheduler_infos
        return infos[0]

    async def _create_app(self, args: Any) -> ASGIApp:
        """SGLang's OpenAI app, set up as its own server would, but for the server."""
        from sglang.srt.entrypoints import http_server

        manager = self._engine.tokenizer_manager
        # SGLang installs these on our loop at the first request: they must not end the process.
        manager.signal_handler_class = lambda _: SimpleNamespace(
            sigterm_handler=self.request_stop, running_phase_sigquit_handler=self._note_quit
        )
        self._count_steps(manager)
        http_server.set_global_state(
            http_server._GlobalState(
                tokenizer_manager=manager,
                template_manager=self._engine.template_manager,
                scheduler_info=self._scheduler_info,
            )
        )
        # It would ask our closed door for it, over HTTP.
        http_server._freeze_gc_after_server_warmup = lambda _: None
        app = http_server.app
        app.is_single_tokenizer_mode = True
        app.server_args = args
        app.warmup_thread_kwargs = {"server_args": args}
        if args.api_key or args.admin_api_key:
            from sglang.srt.utils.auth import add_api_key_middleware

            add_api_key_middleware(app, api_key=args.api_key, admin_api_key=args.admin_api_key)
        self._key = args.api_key or ""
        # The worker's own server runs without lifespans: the engine's is entered and left here.
        await self._lifespan.enter_async_context(http_server.lifespan(app))
        served: ASGIApp = app
        return served

    def warmup_headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._key}"} if self._key else {}

    def _count_steps(self, manager: Any) -> None:
        """Every batch of outputs is a step."""
        handle = manager._handle_batch_output

        async def handle_and_count(outputs: Any) -> Any:
            self._steps += 1
            return await handle(outputs)

        manager._handle_batch_output = handle_and_count

    # -- watch -----------------------------------------------------------------------------------------------------

    def _note_quit(self, *_: object) -> None:
        """SIGQUIT: a child of the engine has failed, and says so."""
        self._quit = True

    def check_alive(self) -> None:
        if self._engine is None:
            return
        watchdog = self._engine.tokenizer_manager._subprocess_watchdog
        for process, name in zip(watchdog._processes, watchdog._names, strict=True) if watchdog else ():
            if not process.is_alive():
                code = process.exitcode or 0
                how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
                raise EngineDied(f"SGLang's {name} ({how}) died: the reason is in the log")
        if self._quit:
            raise EngineDied("a process of SGLang failed: the reason is in the log")

    def progress(self) -> Progress:
        if self._engine is None:
            return Progress(0, 0)
        return Progress(len(self._engine.tokenizer_manager.rid_to_state), self._steps)

    # -- stop ------------------------------------------------------------------------------------------------------

    async def stop_engine(self) -> None:
        await self._abandon_loading()
        try:
            await self._lifespan.aclose()
        finally:
            engine, self._engine = self._engine, None
            if engine is not None:
                for task in engine.tokenizer_manager.asyncio_tasks:
                    task.cancel()
                atexit.unregister(engine.shutdown)  # it has been, then
                await self._thread.run(engine.shutdown)
            asyncio.get_running_loop().remove_signal_handler(signal.SIGQUIT)

    async def _abandon_loading(self) -> None:
        """A job in the thread cannot be cancelled: one that waits for the engine's children ends with them."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOADING_EXIT_S):
                while self._thread.is_busy:
                    await asyncio.to_thread(kill_children)
                    await asyncio.sleep(LOADING_POLL_S)


def prepare_environment(environ: MutableMapping[str, str], model: str, *, on_cpu: bool) -> None:
    if on_cpu:
        environ["SGLANG_USE_CPU_ENGINE"] = "1"
    if Path(model).is_dir():
        environ.setdefault("HF_HUB_OFFLINE", "1")


def cpu_argv(given: set[str]) -> list[str]:
    chosen = [word for options, words in CPU_DEFAULTS.items() if not options & given for word in words]
    logger.info("cpu_defaults", why="SGLang runs without a GPU", arguments=" ".join(chosen))
    return chosen


def tasks_of(manager: Any) -> tuple[str, ...]:
    """In vLLM's words."""
    if manager.is_generation:
        return ("generate",)
    architectures = manager.model_config.hf_config.architectures or []
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        return ("classify", "score")
    return ("embed",)


def explain_failed_start(error: Exception) -> str:
    """The root cause is a child's, and stands in the log."""
    text = one_sentence(f"{type(error).__name__}: {error}")
    return f"SGLang's engine did not start: {text}: the reason is in the log"
