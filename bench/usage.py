"""What a process with all its descendants has used, and what follows from it."""

import contextlib
from collections.abc import Iterator, Sequence

import psutil


def tree(pid: int) -> Iterator[psutil.Process]:
    """The process and its living descendants."""
    root = psutil.Process(pid)
    yield root
    yield from root.children(recursive=True)


def tree_cpu_s(pid: int) -> float:
    """User and system seconds so far, of the process, its living descendants, and those it has waited for."""
    total = 0.0
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def tree_rss_bytes(pid: int) -> int:
    """Resident memory now; pages that two of the processes share count twice."""
    total = 0
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def us_per_chunk(cpu_s: float, us_per_request: float, streams: int, chunks: int) -> float:
    """Microseconds a chunk costs: what is left of ``cpu_s`` after each stream's cost as a request, per chunk."""
    return (cpu_s * 1e6 - us_per_request * streams) / chunks


def slope(points: Sequence[tuple[float, float]]) -> float:
    """How steeply ``points`` (x, y) rise, by least squares; 0 where all have the same x."""
    middle_x = sum(x for x, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / spread if spread else 0.0
