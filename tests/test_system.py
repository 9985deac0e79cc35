"""The GPUs of a machine, where NVML tells all, some, or nothing."""

import pynvml
import pytest

from monitor.system import Gpu, read_gpus
from tests.nvml_double import GIB, Card, Nvml


def whole(index: int, uuid: str) -> Gpu:
    return Gpu(index, "NVIDIA H100", uuid, memory_total=80 * GIB, memory_used=GIB, utilization=7)


def test_gpus_are_read_and_nvml_is_given_back() -> None:
    nvml = Nvml(Card("GPU-a"), Card("GPU-b"))
    assert read_gpus(nvml) == [whole(0, "GPU-a"), whole(1, "GPU-b")]
    assert (nvml.opened, nvml.closed) == (1, 1)


@pytest.mark.parametrize("function", ["init", "count"])
@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH])
def test_no_usable_driver_is_no_gpu(function: str, code: int) -> None:
    nvml = Nvml(Card("GPU-a"), refuses={function: code})
    assert read_gpus(nvml) == []
    assert nvml.opened == nvml.closed


def test_an_nvml_that_does_not_close_has_told_all_the_same() -> None:
    assert len(read_gpus(Nvml(Card("GPU-a"), refuses={"shutdown": pynvml.NVML_ERROR_UNKNOWN}))) == 1


@pytest.mark.parametrize("function", ["handle", "name"])
def test_a_lost_gpu_is_told_and_hides_no_other(function: str) -> None:
    nvml = Nvml(Card("GPU-a"), Card("GPU-b", refuses={function: pynvml.NVML_ERROR_GPU_IS_LOST}), Card("GPU-c"))
    assert read_gpus(nvml) == [whole(0, "GPU-a"), Gpu(1, trouble="GPU is lost"), whole(2, "GPU-c")]


def test_a_gpu_of_others_is_none_of_ours() -> None:
    nvml = Nvml(Card("GPU-a", refuses={"handle": pynvml.NVML_ERROR_NO_PERMISSION}), Card("GPU-b"))
    assert read_gpus(nvml) == [whole(1, "GPU-b")]


def test_what_nvml_does_not_tell_is_none() -> None:
    shared = Card("GPU-a", "NVIDIA GB10", refuses={"memory": pynvml.NVML_ERROR_NOT_SUPPORTED})
    (gpu,) = read_gpus(Nvml(shared))
    assert (gpu.name, gpu.memory_total, gpu.memory_used, gpu.utilization) == ("NVIDIA GB10", None, None, 7)


def test_slices_belong_to_their_gpu() -> None:
    cut = Card("GPU-a", slices=["MIG-1", None, "MIG-2"], refuses={"load": pynvml.NVML_ERROR_NOT_SUPPORTED})
    (gpu,) = read_gpus(Nvml(cut))
    assert (gpu.mig_uuids, gpu.utilization, gpu.trouble) == (("MIG-1", "MIG-2"), None, "")
