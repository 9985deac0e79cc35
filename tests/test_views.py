"""What an administrator sees of a worker."""

from api.views import worker_view
from monitor.heartbeat import GpuMemory, Heartbeat
from monitor.registry import WorkerRegistry


def test_the_memory_of_a_workers_gpus_is_shown() -> None:
    memory = GpuMemory(gpu_id=0, total=80, used=70, used_before_load=1, used_after_load=70)
    beat = Heartbeat(worker_id="w", model_name="m", backend="b", host="h", port=1, gpu_ids=(0,), gpu_memory=(memory,))
    registry = WorkerRegistry(forget_after_s=300)
    registry.upsert(beat, 0.0)
    assert worker_view(registry.worker("w"), {}, 1.0)["gpu_memory"] == [memory.model_dump()]
