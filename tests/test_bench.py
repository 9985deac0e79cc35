"""The benches measure what they say: small runs of them, and their arithmetic."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.answers import answer_to, request_body, text_of
from bench.conversations import WORDS, WORKLOADS, Sizes
from bench.load import quantile, says_the_same
from bench.peers import PEERS, named_peers
from bench.plan import Plan
from bench.processes import Running, load_generator, merged
from bench.questions import MIXTURE, kind_of, mixed_question
from bench.report import METRICS, document, number, summarize, table
from bench.soak import Soaked, exit_code, last_half
from bench.subjects import Subject
from bench.usage import slope, us_per_chunk
from tests.support import ROOT, free_port

pytestmark = pytest.mark.share("processes")

SMALL = {
    "relay": ["--repetitions", "1", "--requests", "200", "--concurrency", "4", "--streams", "4", "--chunks", "5",
              "--quiet-streams", "2", "--quiet-chunks", "3", "--rounds", "2", "--interval-ms", "1", "--peers", "none"],
    "streams": ["--streams", "20", "--interval-ms", "50", "--starts-per-s", "200", "--steady-s", "0.3"],
    "soak": ["--requests", "400", "--every", "100", "--concurrency", "4", "--bound", "1e9"],
    "routing": ["--backend", "fake", "--replicas", "1", "--policies", "round_robin", "no_such_policy", "--sizes",
                "conversations=2,turns=2,prompts=1,questions=2,singles=3"],
}  # fmt: skip


def run(bench: str, *more: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", f"bench.{bench}", *SMALL[bench], *more]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)


def report_of(folder: Path, bench: str, *more: str) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    done = run(bench, "--json", str(folder / "out"), *more)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "out").read_text())
    return found, done


def test_a_small_run_reports_every_figure(tmp_path: Path) -> None:
    """A peer that is absent among them: it is skipped with a word."""
    more = ["--gateway", "gateway.py", "--also", "gateway.py", "--peers", "nginx", "--peer-dir", str(tmp_path)]
    report, done = report_of(tmp_path, "relay", *more)
    is_there = PEERS["nginx"].find(tmp_path) is not None
    assert set(report["subjects"]) == {"ichat", "ichat 2", *(["nginx"] if is_there else [])}
    assert is_there or "nginx is skipped" in done.stderr
    assert report["direct"]["errors"] == 0
    assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith(("ichat", "direct"))] == [
        "ichat",
        "ichat",
        "direct",
    ]
    for subject in report["subjects"].values():
        assert subject["errors"] == 0
        assert set(subject["summary"]) == set(METRICS)
        assert subject["summary"]["cpu_us_per_request"]["median"] > 0
    assert all(label in done.stdout for label in METRICS.values())


def test_many_streams_have_their_memory_and_their_gaps(tmp_path: Path) -> None:
    report, _ = report_of(tmp_path, "streams")
    (level,) = report["levels"]
    assert level["errors"] == 0
    assert level["rss_bytes"] > 2**20
    assert level["gap_gateway_p50_ms"] > 0
    assert level["pieces"] > 0


def test_a_soak_looks_at_memory_again_and_again(tmp_path: Path) -> None:
    report, _ = report_of(tmp_path, "soak")
    assert report["errors"] == 0
    assert [served for served, _ in report["samples"]] == [100, 200, 300, 400]


def test_a_soak_fails_when_memory_grows_faster_than_its_bound_or_an_answer_was_wrong() -> None:
    soaked = Soaked([(0, 0), (100, 900), (200, 1900), (300, 2900), (400, 3900)])
    assert soaked.bytes_per_request == pytest.approx(10)
    assert (exit_code(soaked, 10.5), exit_code(soaked, 9.5)) == (0, 1)
    assert exit_code(Soaked(soaked.samples, errors=1), 10.5) == 1


def test_routing_compares_the_policies_that_there_are(tmp_path: Path) -> None:
    report, done = report_of(tmp_path, "routing")
    runs = {(found["workload"], found["policy"]): found["requests"] for found in report["runs"]}
    assert runs == {("multi-turn", "round_robin"): 4, ("shared-prompts", "round_robin"): 2,
                    ("nothing-shared", "round_robin"): 3}  # fmt: skip
    assert all(found["errors"] == 0 and found["prompt_tokens"] > 0 for found in report["runs"])
    assert "no_such_policy is skipped" in done.stderr


@pytest.mark.parametrize("bench", ["relay", "streams", "soak", "routing"])
def test_a_config_that_cannot_be_read_is_a_clear_error(bench: str, tmp_path: Path) -> None:
    done = run(bench, "--config", str(tmp_path / "none.yaml"))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "none.yaml" in done.stderr


def test_a_server_that_is_gone_is_an_error_and_not_the_end() -> None:
    with load_generator() as load:
        plan = Plan(free_port(), connections=2, requests=5, warm_up=2)
        load.prepare(plan)
        outcome = load.run(plan)
    assert (outcome.answers, outcome.errors) == (0, 1)
    assert "no connection" in outcome.trouble[0]


def test_another_gateway_that_does_not_start_is_a_clear_error(tmp_path: Path) -> None:
    broken = tmp_path / "gateway.py"
    broken.write_text("import sys; sys.exit('broken on purpose')")
    done = run("relay", "--gateway", str(broken))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "broken on purpose" in done.stderr


def test_peers_are_found_below_their_folder(tmp_path: Path) -> None:
    command = tmp_path / "smg" / "bin" / "smg"
    command.parent.mkdir(parents=True)
    command.touch(mode=0o755)
    assert PEERS["smg"].find(tmp_path) == command
    assert PEERS["smg"].find(tmp_path / "elsewhere") != command


def test_peers_are_named() -> None:
    assert [peer.name for peer in named_peers("smg,nginx,smg")] == ["smg", "nginx"]
    assert named_peers("none") == []
    assert len(named_peers("all")) == len(PEERS)
    with pytest.raises(ValueError, match="no peer apache: name some of nginx"):
        named_peers("nginx,apache")


def test_a_chunk_costs_what_is_left_after_the_requests() -> None:
    assert us_per_chunk(cpu_s=0.002, us_per_request=100, streams=10, chunks=100) == pytest.approx(10)


@given(st.floats(-1e3, 1e3), st.floats(-1e6, 1e6), st.lists(st.integers(0, 1000), min_size=2, unique=True))
def test_the_slope_of_a_line_is_its_own(steepness: float, start: float, places: list[int]) -> None:
    points = [(float(x), start + steepness * x) for x in places]
    assert slope(points) == pytest.approx(steepness, abs=1e-4)


def test_growth_is_that_of_the_last_half() -> None:
    warm_up = [(100, 5000), (200, 9000)]
    assert last_half([*warm_up, (300, 9100), (400, 9200)]) == [(200, 9000), (300, 9100), (400, 9200)]
    assert slope([(7, 1), (7, 2)]) == 0


def test_answers_are_told_apart_by_their_question() -> None:
    bodies = {answer_to(request_body(seed, chunks)).body for seed in range(4) for chunks in (0, 3)}
    assert len(bodies) == 8


def test_an_answer_does_not_depend_on_how_its_question_is_written() -> None:
    body = request_body(3, 5)
    question = json.loads(body)
    question["max_completion_tokens"] = question.pop("max_tokens")
    assert answer_to(json.dumps(question | {"logprobs": False}, indent=1).encode()) == answer_to(body)


def test_an_error_is_answered_where_one_is_asked_for() -> None:
    answer = answer_to(request_body(1, 0, bench_status=503))
    assert answer.status == 503
    assert answer.writes[0].startswith(b"HTTP/1.1 503 Service Unavailable\r\n")


def test_answers_that_are_written_anew_are_compared_by_what_they_say() -> None:
    whole, stream = answer_to(request_body(1, 0)).body, answer_to(request_body(1, 9)).body
    assert text_of(stream) == " quick brown fox jumps over lazy dog"
    assert says_the_same(json.dumps(json.loads(whole), indent=1).encode(), whole)
    assert not says_the_same(whole.replace(b"token", b"t"), whole)
    assert not says_the_same(stream.replace(b"[DONE]", b"{}"), stream)
    assert not says_the_same(b"what?", whole)


def test_a_hundred_requests_of_the_mixture_hold_every_kind() -> None:
    assert Counter(kind_of(number) for number in range(500, 600)) == MIXTURE
    assert sum(MIXTURE.values()) == 100


def test_the_mixture_asks_each_question_once() -> None:
    plan = Plan(port=1, connections=1, requests=1, warm_up=0, mixture=True)
    asked = [mixed_question(plan, number) for number in range(200)]
    assert len({question.request for question in asked}) == 200
    assert {question.status for question in asked} == {200, 400, 404, 500}
    assert sum(question.leaves for question in asked) == 2 * MIXTURE["left stream"]


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_policy_gets_other_texts_of_the_same_length(workload: str) -> None:
    one, other = ([(entry.system, *entry.turns) for entry in WORKLOADS[workload](salt, Sizes())] for salt in "ab")
    lengths = [sorted(len(text.split()) for texts in asked for text in texts) for asked in (one, other)]
    assert lengths[0] == lengths[1]
    starts = [{" ".join(text.split()[:8]) for texts in asked for text in texts if text} for asked in (one, other)]
    assert not starts[0] & starts[1]
    assert len(set(WORDS)) == len(WORDS)


def test_shared_prompts_are_shared_and_nothing_else_is() -> None:
    sizes = Sizes()
    shared = Counter(entry.system for entry in WORKLOADS["shared-prompts"]("a", sizes))
    assert sorted(shared.values()) == [sizes.questions] * sizes.prompts
    texts = [turn for entry in WORKLOADS["nothing-shared"]("a", sizes) for turn in entry.turns]
    assert len({" ".join(text.split()[:4]) for text in texts}) == len(texts)


def test_settings_are_laid_over_each_other() -> None:
    base = {"a": {"b": 1, "c": [1]}, "d": 2}
    assert merged(base, {"a": {"c": [2]}, "e": 3}) == {"a": {"b": 1, "c": [2]}, "d": 2, "e": 3}
    assert base == {"a": {"b": 1, "c": [1]}, "d": 2}


def test_quantiles_are_values_that_were_measured() -> None:
    assert [quantile([3, 1, 2], share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 2, 3, 3]
    assert quantile([], 0.5) == 0


def subject(name: str, *values: float) -> Subject:
    return Subject(name, Running(1, 1), repetitions=[dict.fromkeys(METRICS, value) for value in values])


def test_a_goal_is_held_against_our_median() -> None:
    ours = subject("ichat", 2.0, 18.0, 500.0)
    assert summarize(ours.repetitions)["gap_added_p50_us"] == {"min": 2, "median": 18, "max": 500}
    report = document(subject("direct"), [ours, subject("nginx", 1000.0)], {})
    assert report["goals"]["cpu_us_per_request"]["met"]
    assert "MISSED" not in table(report)
    worse = subject("ichat", 40.0)
    worse.errors, worse.trouble = 1, ["status 502"]
    report = document(subject("direct"), [worse], {})
    assert not report["goals"]["cpu_us_per_chunk"]["met"]
    assert "MISSED" in table(report)
    assert "status 502" in table(report)


@pytest.mark.parametrize(
    ("value", "text"), [(0.123, "0.12"), (12.34, "12.3"), (1234.5, "1234"), (-150.26, "-150.3"), (7, "7")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text
