"""The stamp in .venv: what was installed there to the end. Without it, or with another, installing runs again."""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

NAME = "ichat-installed.json"


@dataclass(frozen=True, slots=True)
class Stamp:
    """``fingerprint``: of what installing read. ``dev``: whether the developers' part is there too."""

    fingerprint: str
    dev: bool

    def covers(self, wanted: "Stamp") -> bool:
        return self.fingerprint == wanted.fingerprint and (self.dev or not wanted.dev)


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """Of the files' contents, and of the place: an environment that was moved has to be set up again."""
    digest = hashlib.sha256(str(root).encode())
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def read_stamp(folder: Path) -> Stamp | None:
    try:
        values = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return Stamp(str(values["fingerprint"]), bool(values["dev"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_stamp(folder: Path, stamp: Stamp) -> None:
    unfinished = folder / f"{NAME}.new"
    unfinished.write_text(json.dumps(asdict(stamp)) + "\n", encoding="utf-8")
    unfinished.replace(folder / NAME)


def remove_stamp(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        (folder / NAME).unlink()
