"""From measured repetitions to a table and a JSON file."""

import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

METRICS: Final = {
    "cpu_us_per_request": "gateway CPU per request, us",
    "cpu_us_per_chunk": "gateway CPU per streamed chunk, us",
    "ttft_direct_p50_us": "first byte p50, direct, us",
    "ttft_gateway_p50_us": "first byte p50, gateway, us",
    "ttft_added_p50_us": "first byte p50, added, us",
    "ttft_ratio_p50": "first byte p50, gateway / direct",
    "ttft_direct_p99_us": "first byte p99, direct, us",
    "ttft_gateway_p99_us": "first byte p99, gateway, us",
    "ttft_added_p99_us": "first byte p99, added, us",
    "ttft_ratio_p99": "first byte p99, gateway / direct",
    "gap_direct_p50_us": "gap between chunks p50, direct, us",
    "gap_gateway_p50_us": "gap between chunks p50, gateway, us",
    "gap_added_p50_us": "gap between chunks p50, added, us",
    "gap_ratio_p50": "gap between chunks p50, gateway / direct",
    "gap_direct_p99_us": "gap between chunks p99, direct, us",
    "gap_gateway_p99_us": "gap between chunks p99, gateway, us",
    "gap_added_p99_us": "gap between chunks p99, added, us",
    "gap_ratio_p99": "gap between chunks p99, gateway / direct",
    "requests_per_s_direct": "requests/s, direct",
    "requests_per_s_gateway": "requests/s, gateway",
    "busy_requests": "gateway busy while asked, share of a core",
    "busy_streams": "gateway busy while streaming, share of a core",
    "reads_per_chunk": "pieces read per chunk sent",
}
GOALS: Final = {"cpu_us_per_request": 150.0, "cpu_us_per_chunk": 35.0}
"""At most. The median of the repetitions is held against them."""

Repetition = Mapping[str, float]


def summarize(repetitions: Sequence[Repetition]) -> dict[str, dict[str, float]]:
    """Minimum, median and maximum of every metric."""
    summary = {}
    for metric in METRICS:
        values = [repetition[metric] for repetition in repetitions]
        summary[metric] = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return summary


def document(
    repetitions: Sequence[Repetition], settings: Mapping[str, Any], errors: int, trouble: Sequence[str]
) -> dict[str, Any]:
    """What ``--json`` writes."""
    summary = summarize(repetitions)
    goals = {
        metric: {"at_most": goal, "median": summary[metric]["median"], "met": summary[metric]["median"] <= goal}
        for metric, goal in GOALS.items()
    }
    return {
        "machine": machine(), "settings": dict(settings), "errors": errors, "trouble": list(trouble),
        "summary": summary, "goals": goals, "repetitions": [dict(repetition) for repetition in repetitions],
    }  # fmt: skip


def table(report: Mapping[str, Any]) -> str:
    """The document for people."""
    here = report["machine"]
    lines = [f"{here['cpu']}, {here['cores']} cores, Python {here['python']}", ""]
    lines.append(f"{'':45}{'min':>10}{'median':>10}{'max':>10}")
    for metric, label in METRICS.items():
        row = report["summary"][metric]
        lines.append(f"{label:45}" + "".join(f"{number(row[name]):>10}" for name in ("min", "median", "max")))
    lines.append("")
    for metric, goal in report["goals"].items():
        verdict = "met" if goal["met"] else "MISSED"
        lines.append(f"goal: {METRICS[metric]}: at most {goal['at_most']:g}, is {number(goal['median'])}: {verdict}")
    lines.append(f"errors: {report['errors']}")
    lines.extend(f"  {line}" for line in report["trouble"])
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits that matter, no exponent."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"


def machine() -> dict[str, Any]:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return {
        "cpu": found[1].strip() if found else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
