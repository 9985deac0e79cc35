from typing import Any

from scripts.setup.closure import Closure
from scripts.setup.constraints import SGLANG_ON_CPU, create_lock, kept_versions, pin_of
from scripts.setup.lock import Lock, Pin
from scripts.setup.resolver import Resolution


def package(name: str, *requires: str, version: str = "1") -> dict[str, Any]:
    return {"metadata": {"name": name, "version": version, "requires_dist": list(requires)}}


REPORT = [
    package("Engine_CPU", "torch", "vision", 'omp; platform_machine == "x86_64"', "web[fast]"),
    package("torch"),
    package("omp", "omp-lib"),
    package("omp-lib"),
    package("web", 'loop; extra == "fast"', 'docs; extra == "docs"'),
    package("loop"),
    package("model-file", "compiler"),
    package("pytest", "torch"),
]


def test_requirements_are_followed_with_their_extras() -> None:
    reached = Closure(REPORT, dropped=["vision"]).reach(["engine-cpu"], {"platform_machine": "x86_64"})
    assert reached == {"engine-cpu", "torch", "omp", "omp-lib", "web", "loop"}


def test_leaves_bring_nothing_along() -> None:
    assert Closure(REPORT, leaves=["model-file"]).reach(["model-file"]) == {"model-file"}


def test_markers_are_those_of_the_machine_asked_for() -> None:
    reached = Closure(REPORT, dropped=["vision"]).reach(["engine-cpu"], {"platform_machine": "aarch64"})
    assert not {"omp", "omp-lib"} & reached


def test_the_lock_marks_what_one_machine_alone_wants() -> None:
    closure = Closure(REPORT, leaves=["model-file"], dropped=["vision"])
    lock = create_lock(closure, ["engine-cpu", "model-file"], ["pytest"], Resolution([], {"web": ">=2"}))
    assert [str(pin) for pin in lock.run] == [
        "engine-cpu==1",
        "loop==1",
        "model-file==1",
        'omp==1 ; platform_machine == "x86_64"',
        'omp-lib==1 ; platform_machine == "x86_64"',
        "torch==1",
        "web>=2",
    ]
    assert [str(pin) for pin in lock.dev] == ["pytest==1"]


def test_the_versions_kept_are_exact_and_for_all_machines() -> None:
    run = (Pin("omp", "==1", 'platform_machine == "x86_64"'), Pin("web", ">=2"))
    dev = (Pin("pytest", "==9"), *map(pin_of, SGLANG_ON_CPU))
    assert kept_versions(Lock(run, dev)) == ["omp==1", "pytest==9"]
