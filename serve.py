"""iChat worker: one model on one engine, behind doors that a gateway can watch.

    CUDA_VISIBLE_DEVICES=0 python serve.py --model PATH --model-name NAME --port 8001 --gateway-address http://HOST:4000

Engines spawn children that import this file again: nothing heavy may stand at its top, and nothing may run but
``main`` below ``__main__``.
"""

import sys

if __name__ == "__mp_main__":
    # An engine's child: a worker that is killed takes its engine with it.
    from utils.process import die_with_parent

    die_with_parent()


async def serve(argv: list[str]) -> None:
    """Wires one worker and runs it to its end. Raises ConfigError, or EngineDied."""
    import asyncio
    import os
    import signal

    import httpx

    from backends import backend_class
    from backends.status import WorkerStatus
    from config.args import parse_worker_arguments
    from monitor.heartbeat import HeartbeatSender
    from monitor.logs import LogBuffer
    from monitor.system import read_gpus
    from worker.app import WorkerApp
    from worker.beat import beat_maker
    from worker.gpus import GpuWatch
    from worker.metrics import Traffic, create_registry
    from worker.output import OutputCapture

    arguments = parse_worker_arguments(argv)
    create_backend = backend_class(arguments.backend)
    loop = asyncio.get_running_loop()
    status, logs, traffic = WorkerStatus(), LogBuffer(), Traffic()
    gpus = GpuWatch(read_gpus, os.environ, status)
    metrics = create_registry(
        status,
        traffic,
        lambda: backend.progress(),  # noqa: PLW0108 - it is made below
        lambda: gpus.memory,
        arguments.restarts,
    )
    doors = WorkerApp(arguments, status, logs, traffic, metrics)
    backend = create_backend(arguments, status, doors)
    doors.backend = backend
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, backend.request_stop)
    capture = OutputCapture(logs, loop)
    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            sender = HeartbeatSender(client, arguments, beat_maker(backend, arguments, traffic, gpus))
            status.subscribe(sender.beat_soon)
            doors.on_reader_gone = sender.beat_soon
            backend.on_open = sender.start
            try:
                await gpus.start()
                await backend.run()
            finally:
                gpus.stop()
                await sender.stop()
    finally:
        capture.stop()


def engine_to_describe(argv: list[str]) -> str:
    """NAME of ``--help=NAME``; "" without it."""
    return next((word.partition("=")[2] for word in argv if word.startswith("--help=")), "")


def describe(engine: str) -> int:
    """Prints the engine's own arguments; ends with a code as ``main`` does."""
    from backends import backend_class
    from utils.errors import ConfigError

    try:
        print(backend_class(engine).describe_arguments())
    except (ConfigError, ImportError) as error:
        print(f"serve.py: --help={engine}: {error}", file=sys.stderr)
        return ConfigError.EXIT_CODE
    return 0


def main() -> int:
    import asyncio

    from utils.common import raise_open_files_limit
    from utils.errors import ConfigError, IChatError
    from utils.logger import setup_logging

    if engine := engine_to_describe(sys.argv[1:]):
        return describe(engine)
    setup_logging()
    raise_open_files_limit()
    try:
        asyncio.run(serve(sys.argv[1:]))
    except ConfigError as error:
        print(f"serve.py: {error}", file=sys.stderr)
        return ConfigError.EXIT_CODE
    except IChatError as error:
        print(f"serve.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
