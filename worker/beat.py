"""The worker's heartbeat: what it says of itself, put together from its parts."""

import os
import socket
import time
from collections.abc import Callable

from backends.base import BaseBackend
from config.args import WorkerArguments
from monitor.heartbeat import Heartbeat
from utils.common import package_version
from worker.gpus import GpuWatch
from worker.metrics import Traffic


def beat_maker(
    backend: BaseBackend, arguments: WorkerArguments, traffic: Traffic, gpus: GpuWatch
) -> Callable[[], Heartbeat]:
    """A function that makes the beat of the moment."""
    started_at = time.time()
    status = backend.status

    def make_beat() -> Heartbeat:
        facts = status.facts
        return Heartbeat(
            worker_id=arguments.worker_id,
            model_name=arguments.model_name,
            aliases=arguments.aliases,
            backend=arguments.backend,
            host=arguments.advertise_host,
            port=backend.port,
            model_path=arguments.model,
            state=status.state,
            reason=status.reason[:2000],
            tasks=facts.tasks,
            modalities=facts.modalities,
            adapters=facts.adapters,
            load=traffic.report(),
            capacity=facts.capacity,
            max_model_len=facts.max_model_len,
            backend_args=facts.arguments,
            gpu_ids=gpus.ids,
            gpu_memory=gpus.memory,
            pid=os.getpid(),
            node=socket.gethostname(),
            engine_version=facts.version,
            ichat_version=package_version("ichat"),
            started_at=started_at,
            load_seconds=status.load_seconds,
            heartbeat_interval=arguments.heartbeat_interval,
            log_streaming=arguments.log_streaming,
        )

    return make_beat
