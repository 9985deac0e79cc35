"""CPU, memory and GPUs of this machine."""

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import pynvml


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML sees it. ``index`` is the physical one; memory in bytes, load in percent.

    None: NVML does not tell, as for memory that GPU and CPU share, or the load of a GPU that is cut into MIG slices.
    ``trouble``: NVML's words for a GPU that is there and cannot be asked, such as one that fell off its bus.
    """

    index: int
    name: str = ""
    uuid: str = ""
    memory_total: int | None = None
    memory_used: int | None = None
    utilization: int | None = None
    mig_uuids: tuple[str, ...] = ()
    trouble: str = ""


def read_gpus(nvml: Any = pynvml) -> list[Gpu]:
    """All GPUs that this process may use, in PCI order; [] where there is no NVIDIA driver.

    Blocks: to wake a driver that no program holds takes seconds, and a GPU in trouble may let NVML hang.
    """
    try:
        nvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        found = [_read_gpu(nvml, index) for index in range(_ask(nvml.nvmlDeviceGetCount) or 0)]
    finally:
        _ask(nvml.nvmlShutdown)
    return [gpu for gpu in found if gpu is not None]


def _read_gpu(nvml: Any, index: int) -> Gpu | None:
    """None for a GPU that is others' alone: NVML counts it, CUDA does not."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        name, uuid = str(nvml.nvmlDeviceGetName(handle)), str(nvml.nvmlDeviceGetUUID(handle))
    except pynvml.NVMLError_NoPermission:
        return None
    except pynvml.NVMLError as error:
        return Gpu(index, trouble=str(error))
    memory = _ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    load = _ask(nvml.nvmlDeviceGetUtilizationRates, handle)
    return Gpu(
        index=index,
        name=name,
        uuid=uuid,
        memory_total=None if memory is None else int(memory.total),
        memory_used=None if memory is None else int(memory.used),
        utilization=None if load is None else int(load.gpu),
        mig_uuids=_mig_uuids(nvml, handle),
    )


def _mig_uuids(nvml: Any, handle: Any) -> tuple[str, ...]:
    slots = range(_ask(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0)
    slices = [_ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot) for slot in slots]
    uuids = [_ask(nvml.nvmlDeviceGetUUID, part) for part in slices if part is not None]
    return tuple(str(uuid) for uuid in uuids if uuid is not None)


def _ask(question: Callable[..., Any], *arguments: Any) -> Any:
    """NVML's answer; None where it has none. What one GPU does not tell must not hide the others."""
    with contextlib.suppress(pynvml.NVMLError):
        return question(*arguments)
    return None


def read_machine() -> dict[str, Any]:
    """CPU in percent of all cores since the last call, memory in bytes, and the GPUs."""
    memory = psutil.virtual_memory()
    return {
        "cpu": {"cores": psutil.cpu_count() or 0, "percent": psutil.cpu_percent(interval=None)},
        "memory": {"total": memory.total, "used": memory.total - memory.available},
        "gpus": [asdict(gpu) for gpu in read_gpus()],
    }
