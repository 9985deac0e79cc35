"""constraints.txt: the exact versions, in two parts: what iChat needs to run, and what only its developers need.

The file is a valid pip constraints file as well: a part begins at a comment that holds its name in brackets.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.setup.trouble import Trouble

PARTS = ("run", "dev")
_PART = re.compile(r"#\s*\[(\w+)\]")
_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)([=><!~]=[^\s;]+)(?:\s*;\s*(.+))?")


@dataclass(frozen=True, slots=True)
class Pin:
    """One package at one version (``==1.2``), for all machines or, with a marker (PEP 508), for some.

    The version is a range only where the index held none in that range when the lock was made.
    """

    name: str
    version: str
    marker: str = ""

    def __str__(self) -> str:
        return f"{self.name}{self.version}" + (f" ; {self.marker}" if self.marker else "")


@dataclass(frozen=True, slots=True)
class Lock:
    run: tuple[Pin, ...]
    dev: tuple[Pin, ...]

    def pins(self, dev: bool) -> tuple[Pin, ...]:
        return self.run + self.dev if dev else self.run


def lock_path(root: Path, gpu: bool) -> Path:
    return root / ("constraints-cuda.txt" if gpu else "constraints.txt")


def read_lock(path: Path) -> Lock:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise Trouble(f"{path} cannot be read ({error.strerror}): take it from git again") from error
    return parse_lock(text, path.name)


def parse_lock(text: str, name: str = "constraints.txt") -> Lock:
    """Raises Trouble, naming the line, where a line is no pin or belongs to no part."""
    parts: dict[str, list[Pin]] = {part: [] for part in PARTS}
    part = ""
    for number, line in enumerate(text.splitlines(), 1):
        if heading := _PART.match(line):
            part = heading[1]
        if not line.strip() or line.startswith("#"):
            continue
        pin = _PIN.fullmatch(line.strip())
        if pin is None or part not in parts:
            raise Trouble(f"{name}, line {number}: expected NAME==VERSION below # [run] or # [dev], found: {line}")
        parts[part].append(Pin(pin[1], pin[2], pin[3] or ""))
    return Lock(tuple(parts["run"]), tuple(parts["dev"]))


def write_lock(lock: Lock, header: Sequence[str]) -> str:
    """The file's text; ``parse_lock`` reads it back."""
    lines = [f"# {line}".rstrip() for line in header]
    for part, title in (("run", "to run iChat"), ("dev", "only to develop and test it")):
        lines += ["", f"# [{part}] {title}", *(str(pin) for pin in getattr(lock, part))]
    return "\n".join(lines) + "\n"
