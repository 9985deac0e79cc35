"""SGLangBackend: SGLang's tokenizer manager and OpenAI app within this process; its schedulers are spawned children.

Runs SGLang 0.5.23. All of SGLang is imported here, and late: its import alone takes seconds.
"""

import argparse
import asyncio
import atexit
import contextlib
import logging
import os
import signal
from collections.abc import AsyncGenerator, MutableMapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Final, NoReturn

from backends import cpu_shims
from backends.base import ASGIApp, Doors, EngineDied, Progress
from backends.complaints import complaints_as_config_errors, explain_nearest, one_sentence
from backends.engine_arguments import allowed_domains_argv, given_options, shown_arguments
from backends.engine_base import EngineBackend
from backends.sglang.app import SGLangApp
from backends.sglang.arguments import NO_GRAPHS, to_sglang
from backends.status import EngineFacts, WorkerStatus
from backends.timing import note_times, times_of_meta_info
from config.args import WorkerArguments
from utils.errors import ConfigError
from utils.logger import EventLogger

ON_CPU: Final = "SGLANG_USE_CPU_ENGINE"
IMPORTS: Final = ("transformers", "sglang.srt.server_args", "sglang.srt.entrypoints.http_server")
MEMORY: Final = ["kv_cache", "weights", "cuda_graph"]
"""All that SGLang gives back, in its words."""
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
    frozenset({"sleep-on-idle"}): ["--sleep-on-idle"],  # else a scheduler that has nothing to do takes a core
    frozenset({"dtype"}): ["--dtype", "float32"],  # CPUs without AMX or AVX512-BF16 emulate the short floats
}  # fmt: skip
"""What SGLang needs on a machine without a GPU, where the user gave none of the options on the left."""

logger = EventLogger("backend")


class SGLangBackend(EngineBackend):
    name: ClassVar[str] = "sglang"
    title: ClassVar[str] = "SGLang"
    module: ClassVar[str] = "sglang"
    distributions: ClassVar[tuple[str, ...]] = ("sglang",)
    sleep_option: ClassVar[str] = "--enable-memory-saver"

    def __init__(self, arguments: WorkerArguments, status: WorkerStatus, doors: Doors) -> None:
        super().__init__(arguments, status, doors)
        self._engine: Any = None
        self._steps = 0
        self._quit = False

    @classmethod
    def describe_arguments(cls) -> str:
        import torch

        if not torch.cuda.is_available():
            os.environ[ON_CPU] = "1"
            cpu_shims.activate(os.environ)
        from sglang.srt.server_args import ServerArgs

        parser = argparse.ArgumentParser(prog="serve.py", add_help=False)
        ServerArgs.add_cli_args(parser)
        return parser.format_help()

    # -- start -----------------------------------------------------------------------------------------------------

    def _prepare(self, given: set[str]) -> None:
        prepare_environment(os.environ, self.arguments.model)
        # SGLang's children report trouble by SIGQUIT, whose default is to end this process without a word.
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, self._note_quit)

    def _prepare_for_cpu(self) -> None:
        os.environ[ON_CPU] = "1"

    def _explain(self, error: Exception) -> str:
        return explain_failed_start(error)

    async def _load(self) -> ASGIApp:
        await self._import(IMPORTS)
        with complaints_as_config_errors(self.engine_name):
            args, shown = await self._thread.run(self._parse)
        await self._thread.run(self._start_engine, args)
        app = await self._create_app(args)
        manager = self._engine.tokenizer_manager
        self.status.learn(
            EngineFacts(
                version=self._version,
                tasks=tasks_of(manager),
                max_model_len=manager.context_len,
                capacity=self._scheduler_info.get("max_running_requests") or args.max_running_requests,
                modalities=modalities_of(manager.model_config),
                adapters=tuple(manager.lora_registry.get_all_adapters()) if args.enable_lora else (),
                arguments=shown,
            )
        )
        adapters = lambda: self.status.facts.adapters  # noqa: E731 - those of the moment
        return SGLangApp(app, tasks_of(manager), adapters, has_tool_parser=bool(args.tool_call_parser))

    def _parse(self) -> tuple[Any, dict[str, Any]]:
        """SGLang's arguments, and those to show. Raises ConfigError, before anything is loaded."""
        from sglang.srt.server_args import ServerArgs

        parser = self._create_parser()
        ServerArgs.add_cli_args(parser)
        defaults = {action.dest: action.default for action in parser._actions}
        wanted = to_sglang(self.arguments.engine_argv, parser._option_string_actions)
        if self._on_cpu:
            wanted = [*cpu_argv(given_options(wanted)), *wanted]
        own = ["--model-path", self.arguments.model, "--served-model-name", self.arguments.model_name]
        own += ["--host", self.arguments.host, "--port", str(self.port), "--skip-server-warmup", "--enable-metrics"]
        own += allowed_domains_argv(self.arguments)
        parsed = parser.parse_args([*own, *wanted])
        foreign = [name for name in FOREIGN if getattr(parsed, name, None)]
        if foreign:
            words = "; ".join(f"--{name.replace('_', '-')}: {FOREIGN[name]}" for name in foreign)
            raise ConfigError(f"a worker does not take these arguments of {self.engine_name}: {words}")
        if self._on_cpu and (parsed.enable_lora or parsed.lora_paths):
            raise ConfigError(f"{self.engine_name} has no LoRA on a CPU: use --backend vllm")
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
        note_times_of(manager)
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

    # -- sleep -----------------------------------------------------------------------------------------------------

    def _has_sleep_mode(self) -> bool:
        return bool(self._engine.tokenizer_manager.server_args.enable_memory_saver)

    async def put_to_sleep(self, level: int) -> None:
        from sglang.srt.managers.io_struct import ReleaseMemoryOccupationReqInput

        manager = self._engine.tokenizer_manager
        await manager.release_memory_occupation(ReleaseMemoryOccupationReqInput(tags=MEMORY))

    async def wake_engine(self, level: int) -> None:
        from sglang.srt.managers.io_struct import ResumeMemoryOccupationReqInput, UpdateWeightFromDiskReqInput

        manager = self._engine.tokenizer_manager
        await manager.resume_memory_occupation(ResumeMemoryOccupationReqInput(tags=MEMORY))
        if level == 1 and (self._on_cpu or manager.server_args.enable_weights_cpu_backup):
            return  # the weights are there
        update = UpdateWeightFromDiskReqInput(model_path=self.arguments.model)
        done, message, _ = await manager.update_weights_from_disk(update, None)
        if not done:
            raise EngineDied(f"SGLang did not read its weights again: {message}")

    # -- adapters --------------------------------------------------------------------------------------------------

    async def load_adapter(self, name: str, path: str) -> None:
        from sglang.srt.managers.io_struct import LoadLoRAAdapterReqInput

        manager = self._engine.tokenizer_manager
        self._require_lora(enabled=bool(manager.server_args.enable_lora))
        self._require_success(await manager.load_lora_adapter(LoadLoRAAdapterReqInput(lora_name=name, lora_path=path)))

    async def unload_adapter(self, name: str) -> None:
        from sglang.srt.managers.io_struct import UnloadLoRAAdapterReqInput

        manager = self._engine.tokenizer_manager
        self._require_lora(enabled=bool(manager.server_args.enable_lora))
        self._require_success(await manager.unload_lora_adapter(UnloadLoRAAdapterReqInput(lora_name=name)))
        manager.lora_ref_cache.pop(name, None)  # else the next request of this name would load it again

    def _require_success(self, answer: Any) -> None:
        if not answer.success:
            raise self._refusal(str(answer.error_message))

    # -- stop ------------------------------------------------------------------------------------------------------

    async def _end_engine(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            for task in engine.tokenizer_manager.asyncio_tasks:
                task.cancel()
            atexit.unregister(engine.shutdown)  # it has been, then
            await self._thread.run(engine.shutdown)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGQUIT)


def note_times_of(manager: Any) -> None:
    """Every finished sequence's times belong to the request whose task asked for it."""
    generate = manager.generate_request

    async def generate_and_note(*given: Any, **named: Any) -> AsyncGenerator[Any, None]:
        async with contextlib.aclosing(generate(*given, **named)) as answers:
            async for answer in answers:
                for each in answer if isinstance(answer, list) else [answer]:
                    if each.get("meta_info", {}).get("finish_reason"):
                        note_times(partial(times_of_meta_info, each["meta_info"]))
                yield answer

    manager.generate_request = generate_and_note


def prepare_environment(environ: MutableMapping[str, str], model: str) -> None:
    if Path(model).is_dir():
        environ.setdefault("HF_HUB_OFFLINE", "1")


def cpu_argv(given: set[str]) -> list[str]:
    chosen = [word for options, words in CPU_DEFAULTS.items() if not options & given for word in words]
    logger.info("cpu_defaults", why="SGLang runs without a GPU", arguments=" ".join(chosen))
    return chosen


def modalities_of(model_config: Any) -> tuple[str, ...]:
    """In vLLM's words."""
    image, audio = model_config.is_image_understandable_model, model_config.is_audio_understandable_model
    return ("text", *(["audio"] if audio else []), *(["image"] if image else []))


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
