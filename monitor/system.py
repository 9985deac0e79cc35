"""CPU, memory and GPUs of this machine."""

import contextlib
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import pynvml


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML sees it. ``index`` is the physical one; memory in bytes, load in percent."""

    index: int
    name: str
    uuid: str
    memory_total: int
    memory_used: int
    utilization: int


def read_gpus() -> list[Gpu]:
    """All GPUs of this machine; [] where there is no NVIDIA driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_read_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _read_gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    utilization = 0
    with contextlib.suppress(pynvml.NVMLError):  # not to be had on MIG slices
        utilization = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
    return Gpu(
        index=index,
        name=str(pynvml.nvmlDeviceGetName(handle)),
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        memory_total=int(memory.total),
        memory_used=int(memory.used),
        utilization=int(utilization),
    )


def read_machine() -> dict[str, Any]:
    """CPU in percent of all cores since the last call, memory in bytes, and the GPUs."""
    memory = psutil.virtual_memory()
    return {
        "cpu": {"cores": psutil.cpu_count() or 0, "percent": psutil.cpu_percent(interval=None)},
        "memory": {"total": memory.total, "used": memory.total - memory.available},
        "gpus": [asdict(gpu) for gpu in read_gpus()],
    }
