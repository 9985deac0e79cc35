"""From measured repetitions to a table and a JSON file."""

import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.subjects import Repetition, Subject

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
GOALS: Final = {"cpu_us_per_request": 90.0, "cpu_us_per_chunk": 20.0}
"""At most. The median of the repetitions is held against them."""
COLUMNS: Final = {
    "cpu_us_per_request": "us/request",
    "cpu_us_per_chunk": "us/chunk",
    "ttft_ratio_p50": "first p50",
    "ttft_ratio_p99": "first p99",
    "gap_ratio_p50": "gap p50",
    "gap_ratio_p99": "gap p99",
    "requests_per_s_gateway": "requests/s",
    "reads_per_chunk": "pieces",
}
"""Of the table in which gateway and peers stand side by side: medians."""


def summarize(repetitions: Sequence[Repetition]) -> dict[str, dict[str, float]]:
    """Minimum, median and maximum of every metric."""
    summary = {}
    for metric in METRICS:
        values = [repetition[metric] for repetition in repetitions]
        summary[metric] = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return summary


def document(engine: Subject, subjects: Sequence[Subject], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What ``--json`` writes. The first of ``subjects`` is held against the goals."""
    shown = {subject.name: account(subject) for subject in subjects}
    ours = shown[subjects[0].name]["summary"]
    goals = {
        metric: {"at_most": goal, "median": ours[metric]["median"], "met": ours[metric]["median"] <= goal}
        for metric, goal in GOALS.items()
    }
    return {
        "machine": machine(), "settings": dict(settings), "goals": goals, "subjects": shown,
        "direct": {"errors": engine.errors, "trouble": engine.trouble},
    }  # fmt: skip


def account(subject: Subject) -> dict[str, Any]:
    return {
        "errors": subject.errors, "trouble": subject.trouble, "load_share": subject.share,
        "summary": summarize(subject.repetitions), "repetitions": [dict(entry) for entry in subject.repetitions],
    }  # fmt: skip


def table(report: Mapping[str, Any]) -> str:
    """The document for people."""
    here = report["machine"]
    head = f"{here['cpu']}, {here['cores']} cores, Python {here['python']}"
    ours = next(iter(report["subjects"].values()))
    return "\n".join([head, "", *details(ours), "", *side_by_side(report), "", *verdicts(report)])


def details(ours: Mapping[str, Any]) -> list[str]:
    lines = [f"{'':45}{'min':>10}{'median':>10}{'max':>10}"]
    for metric, label in METRICS.items():
        row = ours["summary"][metric]
        lines.append(f"{label:45}" + "".join(f"{number(row[name]):>10}" for name in ("min", "median", "max")))
    return lines


def side_by_side(report: Mapping[str, Any]) -> list[str]:
    """Gateway and peers, a line each; times are ratios to the engine asked directly."""
    lines = [
        f"{'medians; times / direct':24}" + "".join(f"{label:>11}" for label in COLUMNS.values()) + f"{'errors':>8}"
    ]
    for name, entry in report["subjects"].items():
        row = "".join(f"{number(entry['summary'][metric]['median']):>11}" for metric in COLUMNS)
        lines.append(f"{name:24}{row}{entry['errors']:>8}")
    ours = next(iter(report["subjects"].values()))["summary"]
    blanks = "".join(f"{'-' if '_ratio_' not in metric else '1':>11}" for metric in list(COLUMNS)[:-2])
    rate = number(ours["requests_per_s_direct"]["median"])
    return [*lines, f"{'direct':24}{blanks}{rate:>11}{'1':>11}{report['direct']['errors']:>8}"]


def verdicts(report: Mapping[str, Any]) -> list[str]:
    lines = []
    for metric, goal in report["goals"].items():
        verdict = "met" if goal["met"] else "MISSED"
        lines.append(f"goal: {METRICS[metric]}: at most {goal['at_most']:g}, is {number(goal['median'])}: {verdict}")
    for name, entry in [*report["subjects"].items(), ("direct", report["direct"])]:
        lines.append(f"errors, {name}: {entry['errors']}")
        lines.extend(f"  {line}" for line in entry["trouble"])
    return lines


def number(value: float) -> str:
    """Three digits that matter, no exponent; a count as it is."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"


def machine() -> dict[str, Any]:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return {
        "cpu": found[1].strip() if found else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
