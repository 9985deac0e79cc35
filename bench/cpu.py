"""CPU time of a process with all its descendants, and what follows from it."""

import contextlib

import psutil


def tree_cpu_s(pid: int) -> float:
    """User and system seconds so far, of the process, its living descendants, and those it has waited for."""
    root = psutil.Process(pid)
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def us_per_chunk(cpu_s: float, us_per_request: float, streams: int, chunks: int) -> float:
    """Microseconds a chunk costs: what is left of ``cpu_s`` after each stream's cost as a request, per chunk."""
    return (cpu_s * 1e6 - us_per_request * streams) / chunks
