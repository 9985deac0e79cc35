"""Which GPUs managed workers are to run on, and whether this machine has them: pure."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from config.settings import ManagedWorker
from monitor.system import Gpu
from monitor.visible_gpus import visible_gpus


def needs_gpus(worker: ManagedWorker) -> bool:
    """The fake engine needs none, whatever its ``gpu_ids`` say."""
    return worker.backend != "fake"


def gpu_problems(workers: Sequence[ManagedWorker], gpus: Sequence[Gpu]) -> list[str]:
    """What is wrong with the workers' ``gpu_ids`` on a machine with these GPUs, a line each."""
    return [
        f"managed_workers.{number}.gpu_ids: {problem}"
        for number, worker in enumerate(workers)
        if needs_gpus(worker)
        for problem in _problems_of(worker.gpu_ids or (), gpus)
    ]


def _problems_of(ids: Sequence[int], gpus: Sequence[Gpu]) -> Iterator[str]:
    known = {gpu.index for gpu in gpus}
    twice = sorted({gpu for gpu in ids if ids.count(gpu) > 1})
    unknown = sorted(set(ids) - known)
    if twice:
        yield f"it names GPU {', '.join(map(str, twice))} twice: name each once"
    if unknown and not gpus:
        yield (
            f"this machine has no GPU {', '.join(map(str, unknown))}: no NVIDIA driver shows any. Remove gpu_ids to "
            "run without a GPU; if there is one, see why nvidia-smi does not list it"
        )
    elif unknown:
        listed = ", ".join(map(describe, gpus))
        yield f"this machine has no GPU {', '.join(map(str, unknown))}: it has {listed}"


def describe(gpu: Gpu) -> str:
    """``0 (NVIDIA H100, 79 GiB)``"""
    size = None if gpu.memory_total is None else f"{gpu.memory_total // 2**30} GiB"
    words = ", ".join(filter(None, (gpu.name, size, gpu.trouble)))
    return f"{gpu.index} ({words})"


def shared_gpus(
    workers: Sequence[ManagedWorker], gpus: Sequence[Gpu], environ: Mapping[str, str]
) -> dict[int, list[str]]:
    """The GPUs that more than one worker sees, with the workers' ids. ``environ``: the gateway's own.

    A worker without ``gpu_ids`` sees what the gateway sees, and its engine begins with the first of them.
    """
    seen: dict[int, list[str]] = defaultdict(list)
    for worker in filter(needs_gpus, workers):
        ids = visible_gpus({**environ, **worker.env}, gpus) if worker.gpu_ids is None else worker.gpu_ids
        for gpu in ids:
            seen[gpu].append(worker.id)
    return {gpu: ids for gpu, ids in sorted(seen.items()) if len(ids) > 1}
