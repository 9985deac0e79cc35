"""Room on the disks, looked at before anything is downloaded."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.setup.trouble import Trouble

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Need:
    folder: Path
    gib: float
    purpose: str


def installing_needs(root: Path, models: Path, gpu: bool, environ: Mapping[str, str]) -> list[Need]:
    """Measured for the CPU, and rounded up; estimated from the sizes of the packages for CUDA."""
    caches = Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return [
        Need(root, 12 if gpu else 4, ".venv, the installed packages"),
        Need(Path(tempfile.gettempdir()), 6 if gpu else 1.5, "packages while they are unpacked"),
        Need(Path(environ.get("PIP_CACHE_DIR") or caches / "pip"), 6 if gpu else 1.5, "pip's cache of downloads"),
        Need(models, 0.6, "the demo model"),
    ]


def require_room(
    needs: Iterable[Need],
    free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
    device: Callable[[Path], int] = lambda path: path.stat().st_dev,
) -> None:
    """Folders on one disk are added up. Raises Trouble where there is too little."""
    by_device: dict[int, list[Need]] = {}
    for need in needs:
        by_device.setdefault(device(nearest_existing(need.folder)), []).append(need)
    for on_one_disk in by_device.values():
        wanted = sum(need.gib for need in on_one_disk)
        room = free(nearest_existing(on_one_disk[0].folder)) / GIB
        if room < wanted:
            what = "\n".join(f"  {need.gib:4.1f} GiB in {need.folder}: {need.purpose}" for need in on_one_disk)
            raise Trouble(
                f"The disk is too full: {room:.1f} GiB are free, and {wanted:.1f} GiB are needed:\n{what}\n"
                "Make room there and run this again."
            )


def nearest_existing(path: Path) -> Path:
    return next(candidate for candidate in (path.absolute(), *path.absolute().parents) if candidate.exists())
