"""From the gateway's start to its end: what to show meanwhile, and when it is ready or has failed."""

import time
from collections.abc import Callable
from typing import Protocol

from scripts.setup.config_file import Config
from scripts.setup.console import Console, Step
from scripts.setup.gateway_api import Answer, WorkerState
from scripts.setup.trouble import Trouble

POLL_S = 0.5
WATCH_S = 0.2


class Gateway(Protocol):
    """What ``GatewayProcess`` does, once started."""

    asked: list[int]

    @property
    def returncode(self) -> int | None: ...
    def ended_as_asked(self) -> bool: ...
    def stop(self) -> None: ...


class Startup:
    """Follows one gateway; ``run`` returns our exit status."""

    def __init__(
        self,
        gateway: Gateway,
        config: Config,
        console: Console,
        ask: Callable[[], Answer],
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._gateway = gateway
        self._config = config
        self._console = console
        self._ask = ask
        self._pause = pause
        self._states: dict[str, str] = {}

    def run(self) -> int:
        try:
            workers = self._wait_until_ready()
        except Trouble as trouble:
            self._console.say(f"\n{trouble}\n")
            self._gateway.stop()
            self._wait_for_end()
            return 1
        if not self._gateway.asked:
            self._console.say(welcome(self._config, workers))
        self._wait_for_end()
        if self._gateway.ended_as_asked():
            self._console.say("Stopped.")
            return 0
        self._console.say(
            f"The gateway ended by itself, {exit_words(self._gateway.returncode)}: its last lines are above."
        )
        return 1

    def _wait_until_ready(self) -> tuple[WorkerState, ...]:
        """The workers, as soon as the gateway is ready or was asked to end. Raises Trouble."""
        with self._console.step("starting") as step:
            while True:
                if self._gateway.asked:
                    step.conclude("given up")
                    return ()
                answer = self._ask()
                if self._gateway.returncode is not None and not self._gateway.asked:
                    raise Trouble(
                        f"The gateway ended at its start, {exit_words(self._gateway.returncode)}. "
                        "What was wrong stands above: correct it, and run this again."
                    )
                if failed := [worker for worker in answer.workers or () if worker.status == "failed"]:
                    raise Trouble(failure(failed, self._config.log_dir))
                if is_ready(answer, self._config):
                    step.conclude("ready")
                    return answer.workers or ()
                self._show(step, answer)
                self._pause(POLL_S)

    def _show(self, step: Step, answer: Answer) -> None:
        """Every change of a worker's state as a line of its own, and what goes on now in the last line."""
        for worker in answer.workers or ():
            if self._states.get(worker.worker_id) != worker.state:
                self._states[worker.worker_id] = worker.state
                self._console.say(f"  {step.seconds:4.0f} s  {worker.model_name}: {worker.state}")
        step.update(progress(answer))

    def _wait_for_end(self) -> None:
        while self._gateway.returncode is None and not self._gateway.asked:
            self._pause(WATCH_S)
        if self._gateway.returncode is None:
            with self._console.step("stopping") as step:
                while self._gateway.returncode is None:
                    step.update("waiting for requests and workers to end (Ctrl-C again hurries)")
                    self._pause(WATCH_S)
                step.conclude("")


def is_ready(answer: Answer, config: Config) -> bool:
    """Every worker that is to come is healthy; a gateway without workers of its own is ready once it is up."""
    if not config.models:
        return answer.up
    if answer.workers is None:
        return answer.ready
    healthy = sum(worker.status == "healthy" for worker in answer.workers)
    return answer.ready and healthy >= len(config.models)


def progress(answer: Answer) -> str:
    if not answer.up:
        return "waiting for the gateway to answer"
    if answer.workers is None:
        return "waiting for a model (this gateway shows its workers only to whoever has the admin key)"
    waiting = [worker for worker in answer.workers if worker.status != "healthy"]
    return ", ".join(
        f"{worker.model_name} is {worker.state}{f': {worker.reason}' if worker.reason else ''}" for worker in waiting
    )


def failure(workers: list[WorkerState], log_dir: str) -> str:
    reasons = "\n".join(f"{worker.model_name} could not be started: {worker.reason}" for worker in workers)
    logs = " ".join(f"{log_dir}/{worker.worker_id}.log" for worker in workers)
    advice = (
        "Correct config.yaml (config.yaml.example explains every key), or remove it to begin afresh; run this again."
    )
    return f"{reasons}\nAll it said: {logs}\n{advice}"


def exit_words(status: int | None) -> str:
    return f"killed by signal {-status}" if status is not None and status < 0 else f"with exit status {status}"


def welcome(config: Config, workers: tuple[WorkerState, ...]) -> str:
    """Ready, what to paste next, and how to stop."""
    url = config.address.url
    names = [worker.model_name for worker in workers] or [model.name for model in config.models]
    if not names:
        return (
            f"\niChat is up at {url}, but config.yaml names no model yet: see managed_workers in config.yaml.example.\n"
        )
    key = "YOUR-KEY" if config.wants_key else "none"
    header = ' -H "Authorization: Bearer YOUR-KEY"' if config.wants_key else ""
    question = '[{"role": "user", "content": "What is the capital of France?"}]'
    ask = f'{{"model": "{names[0]}", "temperature": 0, "messages": {question}}}'
    return f"""
iChat is ready at {url}/v1 with {", ".join(names)}. In another terminal:

curl {url}/v1/chat/completions -H "Content-Type: application/json"{header} -d '{ask}'

or in Python (.venv/bin/python has the package openai):

from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key="{key}")
question = {question}
answer = client.chat.completions.create(model="{names[0]}", temperature=0, messages=question)
print(answer.choices[0].message.content)

Ctrl-C stops everything.
"""
