"""Asks pip which versions fit together: ``pip install --dry-run --report``, which installs nothing."""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

from scripts.setup.trouble import Trouble

EXCLUDED = ("litellm!=1.107.*",)
"""LiteLLM 1.107.0 was a compromised release."""

Packages = list[dict[str, Any]]

_ABSENT = re.compile(r"No matching distribution found for (\S+)")


@dataclass(slots=True)
class Resolution:
    """``packages`` as in pip's report. ``open``: name -> range, where the index holds no version in that range.
    ``constraints``: what pip was held to."""

    packages: Packages
    open: dict[str, str] = field(default_factory=dict)
    constraints: tuple[str, ...] = EXCLUDED


class Absent(Trouble):
    """Some package requires a version that the index does not hold (yet)."""

    def __init__(self, requirement: str, said: str) -> None:
        super().__init__(said)
        self.requirement = Requirement(requirement)


def resolve(requirements: Sequence[str], gpu: bool, kept: Sequence[str] = ()) -> Resolution:
    """What pip would install, at the versions of ``kept`` (NAME==VERSION) for the packages named there.

    A required version that the index lacks is left open rather than bent. For CUDA, CPU builds that this machine's
    index may offer are turned down. Raises Trouble where no versions fit together.
    """
    resolution, wanted = Resolution([], constraints=(*EXCLUDED, *kept)), list(requirements)
    while True:
        try:
            found = ask_pip(wanted, constraints=resolution.constraints)
        except Absent as absent:
            wanted = leave_open(absent, wanted, resolution)
            continue
        cpu_builds = [package["metadata"] for package in found if package["metadata"]["version"].endswith("+cpu")]
        if not gpu or not cpu_builds:
            resolution.packages += found
            return resolution
        turned_down = (f"{metadata['name']}!={metadata['version']}" for metadata in cpu_builds)
        resolution.constraints = (*resolution.constraints, *turned_down)


def leave_open(absent: Absent, wanted: Sequence[str], resolution: Resolution) -> list[str]:
    """The wanted requirements, that which wants the absent version replaced by all else that it requires."""
    opened = absent.requirement
    for position, line in enumerate(wanted):
        (package,) = ask_pip([line], "--no-deps", constraints=resolution.constraints)
        inner = [Requirement(text) for text in package["metadata"].get("requires_dist", [])]
        kept = [one for one in inner if (one.name, one.specifier) != (opened.name, opened.specifier)]
        if len(kept) < len(inner):
            resolution.packages.append(package)
            resolution.open[canonicalize_name(opened.name)] = str(opened.specifier)
            return [*wanted[:position], *map(str, kept), *wanted[position + 1 :]]
    raise absent


def ask_pip(requirements: Sequence[str], *options: str, constraints: Sequence[str]) -> Packages:
    """The packages that pip would install. Raises Trouble, with pip's own last words."""
    with tempfile.TemporaryDirectory() as folder:
        held, report = Path(folder, "constraints.txt"), Path(folder, "report.json")
        held.write_text("\n".join(constraints) + "\n", encoding="utf-8")
        base = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--quiet"]
        given = ["--constraint", str(held), "--report", str(report), *options, *requirements]
        asked = subprocess.run([*base, *given], capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            packages: Packages = json.loads(report.read_text(encoding="utf-8"))["install"]
            return packages
    if absent := _ABSENT.search(asked.stderr):
        raise Absent(absent[1], f"pip finds no {absent[1]} on its index: {asked.stderr[-300:]}")
    raise Trouble("pip found no set of versions that fit together:\n" + asked.stderr[-2000:])
