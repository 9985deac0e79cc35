"""CUDA_VISIBLE_DEVICES, read as CUDA does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.system import Gpu
from monitor.visible_gpus import visible_gpus
from tests.doubles import PATIENT

UUIDS = ("GPU-8f1c0000-aa", "GPU-8f1d0000-bb", "GPU-07000000-cc")
SLICES = (("MIG-11", "MIG-12"), (), ("MIG-31",))
GPUS = [Gpu(index, "H100", UUIDS[index], mig_uuids=SLICES[index]) for index in range(3)]
UNLIKE = [Gpu(0, "T400", "GPU-a"), Gpu(1, "H100", "GPU-b"), Gpu(2, trouble="GPU is lost")]


def seen(variable: str, gpus: list[Gpu] = GPUS, **more: str) -> tuple[int, ...]:
    return visible_gpus({"CUDA_VISIBLE_DEVICES": variable, **more}, gpus)


@pytest.mark.parametrize(
    ("variable", "ids"),
    [
        ("0", (0,)), ("2, 0", (2, 0)), ("+1", (1,)), ("1gpu2", (1,)), (" 1 ,0", (1, 0)),
        ("", ()), (" ", ()), ("-1", ()), ("NoDevFiles", ()), (",0", ()), ("none", ()), ("\uff11", ()),
        ("0,2,-1,1", (0, 2)), ("0,", (0,)), ("1,3,0", (1,)), ("0,x,1", (0,)), ("99999999999999999999", ()),
        ("0,0", ()), ("0,1,0", ()),
        (UUIDS[2], (2,)), ("GPU-8f1d,GPU-07", (1, 2)), ("GPU-8f1", ()), ("GPU-07,GPU-8f,GPU-8f1c", (2,)), ("GPU-", ()),
        ("GPU-07,0", (2,)), ("0,GPU-07", (0,)), ("GPU-8f1c,GPU-8f1c0", ()), ("8f1c", ()),
        ("MIG-31", (2,)), ("MIG-12,MIG-11,MIG-31", (0, 2)), ("MIG-1", ()), ("MIG-x,MIG-11", ()), ("MIG-31,1", (2,)),
        ("MIG-31,GPU-8f1c", (2,)), ("MIG-GPU-8f1d0000-bb/1/0", (1,)), ("MIG-GPU-8f1/1/0", ()),
    ],
)  # fmt: skip
def test_a_list_is_read_up_to_its_first_wrong_entry(variable: str, ids: tuple[int, ...]) -> None:
    assert seen(variable) == ids


def test_unset_is_all_and_a_machine_without_gpus_has_none() -> None:
    assert visible_gpus({}, GPUS) == (0, 1, 2)
    assert visible_gpus({}, []) == ()
    assert (seen("0", []), seen("GPU-a", []), seen("MIG-a", [])) == ((), (), ())


def test_numbers_of_unlike_gpus_tell_nothing_without_pci_order() -> None:
    assert seen("0,1", UNLIKE) == seen("0,1", UNLIKE, CUDA_DEVICE_ORDER="FASTEST_FIRST") == ()
    assert seen("1,0", UNLIKE, CUDA_DEVICE_ORDER="PCI_BUS_ID") == (1, 0)
    assert seen("GPU-b", UNLIKE) == (1,)


def test_gpus_of_others_are_not_counted() -> None:
    assert seen("0", GPUS[1:]) == (1,)


entries = st.sampled_from(["0", "1", "2", "3", "-1", "x", "", " 1", *UUIDS, "GPU-8", "GPU-07", "MIG-11", "MIG-31"])
variables = st.lists(entries, max_size=5).map(",".join) | st.text()
some_gpus = st.sets(st.sampled_from(GPUS)).map(lambda chosen: sorted(chosen, key=lambda gpu: gpu.index))
orders = st.lists(st.sampled_from(range(3)), unique=True, min_size=1)


@PATIENT
@given(variables, some_gpus)
def test_whatever_it_says_each_gpu_is_there_and_seen_once(variable: str, gpus: list[Gpu]) -> None:
    ids = seen(variable, gpus)
    assert len(set(ids)) == len(ids)
    assert set(ids) <= {gpu.index for gpu in gpus}


@PATIENT
@given(orders)
def test_a_list_of_all_kinds_of_names_keeps_its_order(order: list[int]) -> None:
    names = {"number": map(str, order), "uuid": (UUIDS[index] for index in order)}
    for kind, words in names.items():
        assert seen(",".join(words)) == tuple(order), kind


@PATIENT
@given(orders, st.sampled_from(["-1", "3", "x", "", "GPU-no"]), variables)
def test_what_follows_a_wrong_entry_does_not_matter(order: list[int], wrong: str, rest: str) -> None:
    assert seen(f"{','.join(map(str, order))},{wrong},{rest}") == tuple(order)
