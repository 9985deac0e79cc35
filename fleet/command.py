"""The command line and environment of a managed worker: pure."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from config.args import TOKEN_VARIABLE
from config.settings import ManagedWorker
from config.unified import to_argv

ID_VARIABLE = "ICHAT_MANAGED_WORKER_ID"
"""Set for every managed worker, so that a gateway that was killed finds its workers again."""
FINGERPRINT_VARIABLE = "ICHAT_MANAGED_FINGERPRINT"


def worker_argv(
    worker: ManagedWorker, python: str, serve: Path, gateway_address: str, drain_timeout_s: float, max_body_mb: float
) -> list[str]:
    """How ``serve.py`` is started for a managed worker. No shell ever sees it."""
    return [
        python, str(serve),
        "--model", worker.model_path,
        "--model-name", worker.model_name, *worker.aliases,
        "--backend", worker.backend,
        "--host", worker.host,
        "--port", str(worker.port),
        "--gateway-address", gateway_address,
        "--worker-id", worker.id,
        "--heartbeat-interval", f"{worker.heartbeat_interval:g}",
        "--drain-timeout", f"{drain_timeout_s:g}",
        "--max-body-mb", f"{max_body_mb:g}",
        *to_argv(worker.engine_arguments),
    ]  # fmt: skip


def worker_env(worker: ManagedWorker, argv: list[str], environ: Mapping[str, str], *, token: str) -> dict[str, str]:
    """The gateway's environment, the worker's own on top, and the GPUs that it may see."""
    env = {name: value for name, value in environ.items() if not name.startswith("ICHAT_")}
    env.update(worker.env)
    if worker.gpu_ids is not None:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, worker.gpu_ids))
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # so that the numbers are those of nvidia-smi
    env["PYTHONUNBUFFERED"] = "1"
    env[ID_VARIABLE] = worker.id
    if token:
        env[TOKEN_VARIABLE] = token
    env[FINGERPRINT_VARIABLE] = fingerprint(worker, argv, token)
    return env


def fingerprint(worker: ManagedWorker, argv: list[str], token: str) -> str:
    """The same for a worker that would be started the same way: whether a running one may be kept."""
    told = {"argv": argv, "env": worker.env, "gpu_ids": worker.gpu_ids, "token": token}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
