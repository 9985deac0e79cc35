"""Which GPUs a program sees: CUDA's environment variables against the GPUs of the machine. Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from monitor.system import Gpu

NUMBER: Final = re.compile(r"\+?([0-9]{1,9})(?![0-9])")
"""CUDA reads a number as C's strtoul does: what follows it does not matter."""


def visible_gpus(environ: Mapping[str, str], gpus: Sequence[Gpu]) -> tuple[int, ...]:
    """The physical ids of the GPUs that a program with this environment sees, in the order in which it sees them.

    CUDA_VISIBLE_DEVICES is read as CUDA does
    (https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#cuda-environment-variables): unset means all,
    the first entry that is wrong ends the list, a GPU that is named twice leaves none; a MIG slice counts as its GPU.
    () also where its numbers tell nothing: without CUDA_DEVICE_ORDER=PCI_BUS_ID, unlike GPUs have CUDA's own order.
    """
    variable = environ.get("CUDA_VISIBLE_DEVICES")
    if variable is None:
        return tuple(gpu.index for gpu in gpus)
    entries = [entry.strip() for entry in variable.split(",")]
    is_numbers, is_slices = not entries[0].startswith(("GPU-", "MIG-")), entries[0].startswith("MIG-")
    if is_numbers and not (environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or are_alike(gpus)):
        return ()
    find = by_number if is_numbers else by_slice if is_slices else by_uuid
    found: list[int] = []
    for entry in entries:
        gpu = find(entry, gpus)
        if gpu is None:
            break
        if gpu in found and not is_slices:
            return ()
        found.append(gpu)
    return tuple(dict.fromkeys(found))


def are_alike(gpus: Sequence[Gpu]) -> bool:
    """Whether CUDA, which puts the fastest first, has no reason for another order than PCI's."""
    return len({gpu.name for gpu in gpus if gpu.name}) <= 1


def by_number(entry: str, gpus: Sequence[Gpu]) -> int | None:
    """CUDA counts what this process may use: where some are others' alone, its numbers are not the physical ids."""
    match = NUMBER.match(entry)
    number = int(match[1]) if match else len(gpus)
    return gpus[number].index if number < len(gpus) else None


def by_uuid(entry: str, gpus: Sequence[Gpu]) -> int | None:
    """The one GPU whose UUID begins so."""
    found = [gpu.index for gpu in gpus if entry.startswith("GPU-") and gpu.uuid.startswith(entry)]
    return found[0] if len(found) == 1 else None


def by_slice(entry: str, gpus: Sequence[Gpu]) -> int | None:
    """The GPU of a MIG slice: ``MIG-<uuid>``, or ``MIG-GPU-<uuid>/<instance>/<instance>`` of older drivers."""
    if entry.startswith("MIG-GPU-"):
        return by_uuid(entry.removeprefix("MIG-").partition("/")[0], gpus)
    found = [gpu.index for gpu in gpus for uuid in gpu.mig_uuids if entry.startswith("MIG-") and uuid.startswith(entry)]
    return found[0] if len(found) == 1 else None
