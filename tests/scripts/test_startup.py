import pytest

from scripts.setup.config_file import Address, Config, Model
from scripts.setup.gateway_api import Answer, parse_workers
from scripts.setup.startup import Startup, is_ready, progress, welcome
from tests.scripts.support import Clock, ScriptedGateway, answers, create_console, worker, written

CONFIG = Config(Address("0.0.0.0", 4000), (Model("demo", "/models/demo"),))


def test_from_the_start_to_the_end() -> None:
    clock, gateway = Clock(), ScriptedGateway()
    console = create_console(clock=clock)
    ask = answers([], [worker("starting")], [worker("loading")], [worker("healthy")], ready=True)

    def pause(seconds: float) -> None:
        clock.pause(seconds)
        if "Ctrl-C stops everything." in written(console):
            gateway.stop()

    assert Startup(gateway, CONFIG, console, ask, pause).run() == 0
    lines = written(console).splitlines()
    assert [line[10:] for line in lines[:4]] == ["starting ...", "demo: starting", "demo: loading", "starting: ready"]
    assert "iChat is ready at http://127.0.0.1:4000/v1 with demo. In another terminal:" in lines
    assert lines[-1] == "Stopped."


def test_a_worker_that_fails_ends_everything() -> None:
    gateway, console = ScriptedGateway(), create_console()
    ask = answers([worker("failed", "out of memory")])
    assert Startup(gateway, CONFIG, console, ask, Clock().pause).run() == 1
    assert gateway.asked == [15]
    assert "demo could not be started: out of memory\nAll it said: logs/demo-1.log" in written(console)


def test_a_gateway_that_ends_at_once_is_told() -> None:
    console = create_console()
    gateway = ScriptedGateway(returncode=2)
    assert Startup(gateway, CONFIG, console, Answer, Clock().pause).run() == 1
    assert "The gateway ended at its start, with exit status 2." in written(console)


def test_a_gateway_that_ends_later_by_itself_is_told() -> None:
    console, gateway = create_console(), ScriptedGateway()

    def pause(seconds: float) -> None:
        gateway.returncode = -9

    ask = answers([worker("healthy")], ready=True)
    assert Startup(gateway, CONFIG, console, ask, pause).run() == 1
    assert "ended by itself, killed by signal 9" in written(console)


def test_stopping_while_it_starts_is_no_failure() -> None:
    console, gateway = create_console(), ScriptedGateway()
    ask = answers([worker("loading")])
    assert Startup(gateway, CONFIG, console, ask, lambda seconds: gateway.stop()).run() == 0
    assert "iChat is ready" not in written(console)


@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        (Answer(), False),
        (Answer(up=True, ready=False, workers=()), False),
        (Answer(up=True, ready=True, workers=(worker("loading"),)), False),
        (Answer(up=True, ready=True, workers=(worker("healthy"),)), True),
        (Answer(up=True, ready=True, workers=None), True),
        (Answer(up=True, ready=False, workers=None), False),
    ],
)
def test_when_it_is_ready(answer: Answer, ready: bool) -> None:
    assert is_ready(answer, CONFIG) is ready


def test_a_gateway_without_models_is_ready_once_it_is_up() -> None:
    config = Config(Address("127.0.0.1", 4000))
    assert is_ready(Answer(up=True), config)
    assert "names no model yet" in welcome(config, ())


def test_what_is_waited_for_is_said() -> None:
    assert progress(Answer()) == "waiting for the gateway to answer"
    assert progress(Answer(up=True, workers=(worker("loading"), worker("healthy")))) == "demo is loading"
    assert progress(Answer(up=True, workers=(worker("unhealthy", "no beat"),))) == "demo is unhealthy: no beat"
    assert "admin key" in progress(Answer(up=True, workers=None))


def test_where_keys_are_wanted_the_examples_show_one() -> None:
    config = Config(Address("127.0.0.1", 4000), (Model("demo", "/d"),), wants_key=True)
    assert welcome(config, ()).count("YOUR-KEY") == 2


def test_the_gateways_workers_are_read_leniently() -> None:
    values = {"workers": [{"worker_id": "demo-1", "model_name": "demo", "status": "failed", "reason": None}, 3]}
    (found,) = parse_workers(values)
    assert (found.status, found.state, found.reason) == ("failed", "", "")
    assert parse_workers(None) == parse_workers({"workers": None}) == ()
