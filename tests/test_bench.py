"""The benches measure what they say: small runs of them, and their arithmetic."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.answers import answer_to, request_body
from bench.cpu import us_per_chunk
from bench.load import quantile
from bench.report import METRICS, document, number, summarize, table
from tests.support import ROOT

SMALL = ["--requests", "200", "--concurrency", "4", "--streams", "4", "--chunks", "5", "--quiet-streams", "2",
         "--quiet-chunks", "3", "--rounds", "2", "--interval-ms", "1"]  # fmt: skip


def test_a_small_run_reports_every_figure(tmp_path: Path) -> None:
    argv = [
        "-m",
        "bench.relay",
        "--repetitions",
        "1",
        "--gateway",
        "gateway.py",
        "--json",
        str(tmp_path / "out"),
        *SMALL,
    ]
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out").read_text())
    assert report["errors"] == 0
    assert set(report["summary"]) == set(METRICS)
    assert report["summary"]["cpu_us_per_request"]["median"] > 0
    assert all(label in done.stdout for label in METRICS.values())


def test_another_gateway_that_does_not_start_is_a_clear_error(tmp_path: Path) -> None:
    broken = tmp_path / "gateway.py"
    broken.write_text("import sys; sys.exit('broken on purpose')")
    argv = ["-m", "bench.relay", "--repetitions", "1", "--gateway", str(broken), *SMALL]
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "bench.relay: " in done.stderr


def test_a_chunk_costs_what_is_left_after_the_requests() -> None:
    assert us_per_chunk(cpu_s=0.002, us_per_request=100, streams=10, chunks=100) == pytest.approx(10)


def test_answers_are_told_apart_by_their_question() -> None:
    bodies = {answer_to(request_body(seed, chunks)).body for seed in range(4) for chunks in (0, 3)}
    assert len(bodies) == 8


def test_quantiles_are_values_that_were_measured() -> None:
    assert [quantile([3, 1, 2], share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 2, 3, 3]
    assert quantile([], 0.5) == 0


def test_a_goal_is_held_against_the_median() -> None:
    runs = [dict.fromkeys(METRICS, value) for value in (10.0, 30.0, 500.0)]
    assert summarize(runs)["gap_added_p50_us"] == {"min": 10, "median": 30, "max": 500}
    report = document(runs, {}, errors=0, trouble=[])
    assert report["goals"]["cpu_us_per_request"]["met"]
    assert "MISSED" not in table(report)
    worse = document([dict.fromkeys(METRICS, 40.0)], {}, errors=1, trouble=["status 502"])
    assert not worse["goals"]["cpu_us_per_chunk"]["met"]
    assert "MISSED" in table(worse)
    assert "status 502" in table(worse)


@pytest.mark.parametrize(("value", "text"), [(0.123, "0.12"), (12.34, "12.3"), (1234.5, "1234"), (-150.26, "-150.3")])
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text
