"""What a worker says of itself."""

import pytest

from backends.fake_backend import FakeBackend
from backends.status import EngineFacts, WorkerStatus
from config.args import parse_worker_arguments
from config.states import WorkerState
from monitor.heartbeat import GpuMemory, Heartbeat
from monitor.system import Gpu
from tests.engine_double import Doors
from worker.beat import beat_maker
from worker.gpus import GpuWatch
from worker.metrics import Traffic


@pytest.mark.anyio
async def test_a_beat_says_what_the_worker_knows_at_the_moment() -> None:
    argv = ["--model", "/models/m", "-n", "m", "alias", "-be", "fake", "--worker-id", "w1", "--hi", "3", "--ls", "off",
            "--host", "0.0.0.0", "--advertise-host", "gpu7"]  # fmt: skip
    arguments = parse_worker_arguments(argv, {"ICHAT_WORKER_TOKEN": "t0ken"})
    status, traffic = WorkerStatus(), Traffic()
    card = Gpu(3, "H100", "GPU-3", memory_total=80, memory_used=5)
    gpus = GpuWatch(lambda: [card], {"CUDA_VISIBLE_DEVICES": "GPU-3"}, status)
    make_beat = beat_maker(FakeBackend(arguments, status, Doors()), arguments, traffic, gpus)
    await gpus.start()
    assert make_beat().state is WorkerState.LOADING
    status.learn(EngineFacts(version="1.2", tasks=("generate",), max_model_len=99, arguments={"seed": 1}))
    status.set(WorkerState.UNHEALTHY, "slow " * 1000)
    traffic.in_flight = 2
    beat = make_beat()
    assert (beat.worker_id, beat.names, beat.backend) == ("w1", ("m", "alias"), "fake")
    assert (beat.host, beat.port, beat.model_path) == ("gpu7", 8001, "/models/m")
    assert (beat.state, beat.engine_version, beat.tasks) == (WorkerState.UNHEALTHY, "1.2", ("generate",))
    assert (beat.max_model_len, beat.backend_args, beat.load["in_flight"]) == (99, {"seed": 1}, 2)
    assert (beat.heartbeat_interval, beat.log_streaming) == (3, False)
    assert (beat.gpu_ids, beat.gpu_memory) == ((3,), (GpuMemory(gpu_id=3, total=80, used=5, used_before_load=5),))
    assert len(beat.reason) == 2000
    assert "t0ken" not in beat.model_dump_json()
    assert Heartbeat.model_validate_json(beat.model_dump_json()) == beat
    gpus.stop()
