"""A collector of spans that is away, or slow, or not set at all; and packages that are missing."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from relay.tracing.context import Trace
from relay.tracing.otlp import BATCH, MAX_QUEUE, OtlpSink
from relay.tracing.spans import Span
from tests.collector_double import collecting
from tests.doubles import logged
from tests.relay_double import door
from tests.scripted import OK, answering, scripted
from tests.support import ROOT, free_port, write_config

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


def give_spans(sink: OtlpSink, count: int = 1) -> None:
    for _ in range(count):
        trace = Trace(sink, random.getrandbits(128), random.getrandbits(64))
        sink.take(Span(trace, "/v1/score", b"req-1", "m", "w", 1, 0, 0, 0.5, False, False, 200, "", False, b""))


async def test_a_collector_that_is_away_is_logged_once_and_when_it_is_back(capfd: pytest.CaptureFixture[str]) -> None:
    async with collecting() as collector:
        collector.status = b"400 Bad Request"
        sink = OtlpSink(collector.endpoint, delay_s=0.01)
        with logged() as events:
            for number in range(1, 4):
                give_spans(sink)
                await collector.wait_for_posts(number)
            collector.status = b"200 OK"
            give_spans(sink)
            await sink.close()
    (away,) = events.named("collector_away")
    assert "400" in away.__dict__["values"]["why"]
    (back,) = events.named("collector_back")
    assert back.__dict__["values"]["lost_at_least"] == 3
    assert capfd.readouterr() == ("", "")


async def test_requests_do_not_need_the_collector() -> None:
    nowhere = f"http://127.0.0.1:{free_port()}/v1/traces"
    with logged() as events:
        async with door(otel_endpoint=nowhere) as gate, scripted(answering(OK, OK)) as (_, address):
            gate.add("w1", address)
            assert [(await gate.chat()).status_code for _ in range(2)] == [200, 200]
    assert len(events.named("collector_away")) + len(events.named("spans_not_sent")) >= 1


async def test_a_collector_that_never_answers_does_not_keep_the_gateway_from_ending() -> None:
    async with collecting() as collector:
        collector.may_answer.clear()
        sink = OtlpSink(collector.endpoint)
        give_spans(sink)
        with logged() as events:
            await sink.close()
        assert len(events.named("spans_not_sent")) == 1
        collector.may_answer.set()


async def test_spans_that_wait_are_bounded() -> None:
    async with collecting() as collector:
        collector.may_answer.clear()
        sink = OtlpSink(collector.endpoint, delay_s=0.01)
        give_spans(sink)
        await collector.wait_for_posts(1)  # its thread waits for the answer
        give_spans(sink, MAX_QUEUE + BATCH)
        collector.may_answer.set()
        await sink.close()
    assert len(collector.spans) == 1 + MAX_QUEUE


# -- without it --------------------------------------------------------------------------------------------------------


def python(code: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True, check=False)


def test_without_the_setting_nothing_is_imported() -> None:
    code = """
import random, sys, gateway
from config.settings import GatewaySettings
from monitor.registry import WorkerRegistry
from relay.access import Access
from relay.plane import DataPlane
settings = GatewaySettings()
DataPlane(WorkerRegistry(), Access(settings.server_settings), settings, random.Random(1))
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = python(code)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_missing_packages_are_named(tmp_path: Path) -> None:
    config = write_config(tmp_path, server_settings={"otel_endpoint": "http://127.0.0.1:4318/v1/traces"})
    code = "import sys; sys.modules['opentelemetry.sdk'] = None; import gateway; sys.exit(gateway.main())"
    done = python(code, "--config", str(config))
    assert done.returncode == 2
    assert "server_settings.otel_endpoint" in done.stderr
    assert "pip install 'ichat[otel]'" in done.stderr
    assert "Traceback" not in done.stderr
