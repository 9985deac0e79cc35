"""How a worker watches its GPUs: before the load, when it is ready, and while it runs."""

import asyncio
import threading
from dataclasses import replace

import pytest

from backends.base import Progress
from backends.status import WorkerStatus
from config.states import WorkerState
from monitor.heartbeat import GpuMemory
from monitor.system import Gpu
from tests.doubles import logged
from tests.support import wait_until
from worker.gpus import GpuWatch
from worker.metrics import Traffic, create_registry

A, B = Gpu(0, "H100", "GPU-a", memory_total=80), Gpu(1, "H100", "GPU-b", memory_total=80)


class Nvml:
    """Gives the readings of a test, one after the other, the last one for ever; waits before each where it must."""

    def __init__(self, *readings: list[Gpu]) -> None:
        self._readings = list(readings)
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.count = 0

    def read(self) -> list[Gpu]:
        self.may_answer.wait()
        self.count += 1
        return self._readings.pop(0) if len(self._readings) > 1 else self._readings[0]


def used(gpu: Gpu, memory: int) -> Gpu:
    return replace(gpu, memory_used=memory)


@pytest.mark.anyio
async def test_memory_is_read_before_the_load_and_when_the_worker_is_ready() -> None:
    nvml, status = Nvml([used(A, 1), used(B, 2)], [used(A, 70), used(B, 3)]), WorkerStatus()
    watch = GpuWatch(nvml.read, {"CUDA_VISIBLE_DEVICES": "1"}, status)
    await watch.start()
    assert watch.ids == (1,)
    assert watch.memory == (GpuMemory(gpu_id=1, total=80, used=2, used_before_load=2),)
    status.set(WorkerState.READY)
    wait_until(lambda: watch.memory[0].used_after_load == 3, "read again")
    assert watch.memory == (GpuMemory(gpu_id=1, total=80, used=3, used_before_load=2, used_after_load=3),)
    watch.stop()


@pytest.mark.anyio
async def test_nothing_is_read_while_the_engine_loads() -> None:
    nvml, status = Nvml([used(A, 1)], [used(A, 2)], [used(A, 3)]), WorkerStatus()
    watch = GpuWatch(nvml.read, {}, status, interval_s=0.01)
    await watch.start()
    status.set(WorkerState.LOADING, "half-way")
    await asyncio.sleep(0.1)
    assert nvml.count == 1
    status.set(WorkerState.READY)
    wait_until(lambda: watch.memory[0].used == 3, "read at every interval")
    assert (watch.memory[0].used_before_load, watch.memory[0].used_after_load) == (1, 2)
    watch.stop()


@pytest.mark.anyio
async def test_an_nvml_that_hangs_holds_up_neither_the_start_nor_the_end() -> None:
    nvml, status = Nvml([used(A, 50)]), WorkerStatus()
    nvml.may_answer.clear()
    watch = GpuWatch(nvml.read, {}, status, first_read_s=0.05)
    with logged() as events:
        await watch.start()
    assert len(events.named("gpus_slow")) == 1
    assert (watch.ids, watch.memory) == ((), ())
    nvml.may_answer.set()
    wait_until(lambda: watch.memory, "its late answer")
    assert watch.memory == (GpuMemory(gpu_id=0, total=80, used=50),), "the engine may have taken its part by then"
    watch.stop()


@pytest.mark.anyio
async def test_a_gpu_that_is_lost_later_is_still_listed() -> None:
    nvml, status = Nvml([used(A, 1), used(B, 1)], [Gpu(0, trouble="GPU is lost")]), WorkerStatus()
    watch = GpuWatch(nvml.read, {}, status)
    await watch.start()
    status.set(WorkerState.READY)
    wait_until(lambda: watch.memory[0].used is None, "read again")
    assert [(gpu.gpu_id, gpu.used, gpu.used_before_load) for gpu in watch.memory] == [(0, None, 1), (1, None, 1)]
    watch.stop()


@pytest.mark.anyio
async def test_a_reading_that_fails_is_told_and_ends_the_watch_alone() -> None:
    def read() -> list[Gpu]:
        raise OSError("no such device")

    watch = GpuWatch(read, {}, WorkerStatus())
    with logged() as events:
        await watch.start()
    assert [record.__dict__["values"]["error"] for record in events.named("gpus_unread")] == ["OSError: no such device"]
    assert watch.memory == ()


@pytest.mark.parametrize(
    ("memory", "samples"),
    [
        ((GpuMemory(gpu_id=3, total=80, used=7), GpuMemory(gpu_id=0, total=80)),
         {("used", "3"): 7, ("total", "3"): 80, ("total", "0"): 80}),
        ((GpuMemory(gpu_id=0),), {}),
        ((), {}),
    ],
)  # fmt: skip
def test_metrics_show_the_memory_that_is_known(
    memory: tuple[GpuMemory, ...], samples: dict[tuple[str, str], float]
) -> None:
    registry = create_registry(WorkerStatus(), Traffic(), lambda: Progress(0, 0), lambda: memory)
    families = [family for family in registry.collect() if "gpu" in family.name]
    found = {(sample.name, sample.labels["gpu"]): sample.value for family in families for sample in family.samples}
    assert found == {(f"ichat_worker_gpu_memory_{what}_bytes", gpu): value for (what, gpu), value in samples.items()}
    assert all(family.samples for family in families)
