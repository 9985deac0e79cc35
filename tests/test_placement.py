"""Managed workers' gpu_ids against the GPUs of the machine."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import GatewaySettings, ManagedWorker
from fleet.placement import gpu_problems, shared_gpus
from gateway import check_gpus
from monitor.system import Gpu
from tests.doubles import PATIENT, logged
from utils.errors import ConfigError

GIB = 2**30
H100 = Gpu(0, "NVIDIA H100", "GPU-a", memory_total=int(79.6 * GIB))
GPUS = [H100, Gpu(1, "NVIDIA GB10", "GPU-b"), Gpu(2, trouble="GPU is lost")]


def managed(*gpu_ids: list[int] | None, **more: Any) -> list[ManagedWorker]:
    facts = {"model_name": "m", "model_path": "org/m", **more}
    own = ({"worker_id": f"w{number}", "port": 8001 + number, "gpu_ids": ids} for number, ids in enumerate(gpu_ids))
    return [ManagedWorker.model_validate({**facts, **each}) for each in own]


@pytest.mark.parametrize("ids", [None, [], [0], [1, 0], [2]])
def test_gpus_that_are_there_are_no_problem(ids: list[int] | None) -> None:
    assert gpu_problems(managed(ids), GPUS) == []


def test_a_gpu_that_is_not_there_is_told_with_those_that_are() -> None:
    assert gpu_problems(managed([0], [1, 4, 3]), GPUS) == [
        "managed_workers.1.gpu_ids: this machine has no GPU 3, 4: "
        "it has 0 (NVIDIA H100, 79 GiB), 1 (NVIDIA GB10), 2 (GPU is lost)"
    ]


def test_a_gpu_twice_is_told() -> None:
    assert gpu_problems(managed([1, 0, 1]), GPUS) == ["managed_workers.0.gpu_ids: it names GPU 1 twice: name each once"]


def test_a_machine_without_gpus_is_told_and_how_to_go_on() -> None:
    (problem,) = gpu_problems(managed(None, [], [0]), [])
    assert problem.startswith("managed_workers.2.gpu_ids: this machine has no GPU 0: ")
    assert "Remove gpu_ids" in problem


def test_the_fake_engine_needs_no_gpu() -> None:
    assert gpu_problems(managed([7, 7], backend="fake"), []) == []


@PATIENT
@given(st.lists(st.lists(st.integers(0, 4), max_size=4) | st.none(), max_size=3))
def test_there_is_a_problem_exactly_where_a_list_is_wrong(lists: list[list[int] | None]) -> None:
    wrong = [n for n, ids in enumerate(lists) if ids and (len(set(ids)) < len(ids) or max(ids) > 2)]
    told = {int(problem.split(".")[1]) for problem in gpu_problems(managed(*lists), GPUS)}
    assert told == set(wrong)


def test_workers_on_one_gpu_are_found() -> None:
    assert shared_gpus(managed([0], [1]), GPUS, {}) == {}
    assert shared_gpus(managed([0, 1], [1]), GPUS, {}) == {1: ["w0", "w1"]}
    assert shared_gpus(managed([0], [0], backend="fake"), GPUS, {}) == {}


def test_a_worker_without_gpu_ids_sees_what_its_environment_says() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "GPU-a"}
    assert shared_gpus(managed(None, None), GPUS[:1], {}) == {0: ["w0", "w1"]}
    assert shared_gpus(managed(None, [0]), GPUS, environ) == {0: ["w0", "w1"]}
    assert shared_gpus(managed(None, [1]), GPUS, environ) == {}
    assert shared_gpus(managed(None, [0], env=environ), GPUS, {"CUDA_VISIBLE_DEVICES": ""}) == {0: ["w0", "w1"]}
    assert shared_gpus(managed(None, None), [], {}) == {}


# -- as the gateway does it ------------------------------------------------------------------------------------------


def settings(workers: list[ManagedWorker]) -> GatewaySettings:
    return GatewaySettings(managed_workers=tuple(workers))


def test_the_gateway_does_not_start_with_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"managed_workers\.0\.gpu_ids: this machine has no GPU 3: it has 0"):
        check_gpus(settings(managed([3])), {}, lambda: GPUS)


def test_the_gateway_starts_and_warns_of_shared_gpus_and_of_those_in_trouble() -> None:
    with logged() as events:
        check_gpus(settings(managed([0], [0, 1])), {}, lambda: GPUS)
    (shared,), (trouble,) = events.named("gpu_shared"), events.named("gpu_in_trouble")
    assert (shared.__dict__["values"]["gpu"], shared.__dict__["values"]["workers"]) == (0, "w0, w1")
    assert trouble.__dict__["values"] == {"gpu": 2, "error": "GPU is lost"}


def test_a_gateway_that_starts_no_engine_does_not_wait_for_nvml() -> None:
    def read() -> list[Gpu]:
        raise AssertionError("asked")

    check_gpus(settings(managed([0], backend="fake")), {}, read)
    check_gpus(settings([]), {}, read)
