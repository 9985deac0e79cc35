"""FakeBackend: a deterministic engine with no model, for tests, benches, and trying the gateway out.

The tokens of an answer follow from its prompt alone. A request may bring its own script::

    {"model": "...", "messages": [...], "fake": {"tokens": 20, "rate": 50, "fault": "cut", "after": 5}}

``fault`` is ``hang`` (no more tokens), ``die`` (the process is killed), ``cut`` (the connection breaks), ``report`` (a
stream ends as vLLM ends it when its engine has died) or ``short`` (it ends by ``[DONE]``, but has no finish reason).
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import math
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from backends.base import ASGIApp, BaseBackend, Progress
from backends.complaints import explain_nearest
from backends.fake.answer import Answer, ChoiceMaker, EngineDied, chat_choice, text_choice
from backends.fake.dialects import MessageAnswer, ResponseAnswer
from backends.fake.words import Prompt, chat_prompt, completion_prompt, seed_of, word_of
from backends.status import EngineFacts
from config.args import WorkerParser
from utils.common import package_version
from utils.errors import BadRequest, ConfigError

DIMENSIONS = 8
CLIENT_GONE = 499
FAULTS = ("", "hang", "die", "cut", "report", "short")


@dataclass(frozen=True, slots=True)
class Script:
    """How an answer comes: its ``tokens``, those included that the request brings as its beginning, ``rate`` a second
    (0: at once), and what goes wrong ``after`` how many of this engine's own."""

    tokens: int = 16
    rate: float = 0.0
    fault: str = ""
    after: int = 0


class FakeBackend(BaseBackend):
    name: ClassVar[str] = "fake"

    _app: "FakeEngine | None" = None

    @classmethod
    def describe_arguments(cls) -> str:
        return create_parser().format_help()

    async def create_engine(self) -> ASGIApp:
        given = parse_engine_arguments(self.arguments.engine_argv)
        script = Script(tokens=given.tokens, rate=given.rate, fault=given.fault, after=given.fault_after)
        await asyncio.sleep(given.load_seconds)
        self.status.learn(
            EngineFacts(
                version=package_version("ichat"),
                tasks=("generate", "embed"),
                max_model_len=given.max_model_len,
                arguments=vars(given),
            )
        )
        self._app = FakeEngine(self.arguments.names, script, given.max_model_len)
        return self._app.app

    async def stop_engine(self) -> None:
        self._app = None

    def check_can_sleep(self) -> None:
        """It can."""

    async def put_to_sleep(self, level: int) -> None:
        if self._app is not None:
            self._app.fall_asleep()

    async def wake_engine(self, level: int) -> None:
        if self._app is not None:
            self._app.wake_up()

    async def load_adapter(self, name: str, path: str) -> None:
        """It answers under any name."""

    async def unload_adapter(self, name: str) -> None:
        """Nothing to give back."""

    def check_alive(self) -> None:
        """It lives as long as this process does."""

    def progress(self) -> Progress:
        return self._app.progress() if self._app else Progress(0, 0)


def create_parser() -> WorkerParser:
    parser = WorkerParser(prog="fake", allow_abbrev=False, add_help=False)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rate", type=float, default=0.0, help="tokens a second; 0: at once")
    parser.add_argument("--fault", choices=FAULTS, default="")
    parser.add_argument("--fault-after", type=int, default=0)
    parser.add_argument("--load-seconds", type=float, default=0.0)
    parser.add_argument("--max-model-len", type=int, default=4096)
    return parser


def parse_engine_arguments(argv: tuple[str, ...]) -> argparse.Namespace:
    parser = create_parser()
    given, unknown = parser.parse_known_args(list(argv))
    if unknown:
        options = [option for action in parser._actions for option in action.option_strings]
        raise ConfigError(explain_nearest(unknown[0], options, "the fake engine"))
    return given


class FakeEngine:
    """The engine's app: OpenAI's routes, and Anthropic's messages."""

    def __init__(self, names: tuple[str, ...], script: Script, max_model_len: int = 4096) -> None:
        self._names = names
        self._max_model_len = max_model_len
        self._script = script
        self._running = 0
        self._steps = 0
        self._awake = asyncio.Event()
        self._awake.set()
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._complete, methods=["POST"]),
                Route("/v1/responses", self._respond, methods=["POST"]),
                Route("/v1/messages", self._message, methods=["POST"]),
                Route("/v1/embeddings", self._embed, methods=["POST"]),
                Route("/v1/models", self._models),
            ],
            exception_handlers={BadRequest: answer_bad_request, EngineDied: answer_dead},
        )

    def progress(self) -> Progress:
        return Progress(self._running, self._steps)

    def fall_asleep(self) -> None:
        """As touchy as the real ones, which do not survive a wrong order. Raises RuntimeError."""
        if self._running or not self._awake.is_set():
            raise RuntimeError("an engine that works, or sleeps, cannot fall asleep")
        self._awake.clear()

    def wake_up(self) -> None:
        if self._awake.is_set():
            raise RuntimeError("an engine that is awake cannot wake up")
        self._awake.set()

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in self._names]})

    async def _chat(self, request: Request) -> Response:
        body = await read_json(request)
        check_messages(body)
        return await self._generate(request, body, chat_prompt(body), "chat.completion", chat_choice)

    async def _complete(self, request: Request) -> Response:
        body = await read_json(request)
        given = body.get("prompt", "")
        prompt = completion_prompt(str(given[0] if isinstance(given, list) and len(given) == 1 else given))
        return await self._generate(request, body, prompt, "text_completion", text_choice)

    async def _respond(self, request: Request) -> Response:
        body = await read_json(request)
        if not isinstance(body.get("input"), str | list):
            raise BadRequest("input is missing: send a text or a list of items", param="input")
        prompt = Prompt(json.dumps([body.get("instructions"), body["input"]]))
        return await self._say(request, body, ResponseAnswer(str(body["model"]), prompt), "max_output_tokens")

    async def _message(self, request: Request) -> Response:
        body = await read_json(request)
        check_messages(body)
        prompt = Prompt(json.dumps([body.get("system"), body["messages"]]))
        return await self._say(request, body, MessageAnswer(str(body["model"]), prompt), "max_tokens")

    async def _generate(
        self, request: Request, body: dict[str, Any], prompt: Prompt, kind: str, choice: ChoiceMaker
    ) -> Response:
        options = body.get("stream_options") or {}
        usage = bool(options.get("include_usage"))
        answer = Answer(
            str(body["model"]), prompt, kind, choice, usage, usage and bool(options.get("continuous_usage_stats"))
        )
        return await self._say(request, body, answer, "max_completion_tokens", "max_tokens")

    async def _say(self, request: Request, body: dict[str, Any], answer: "Speech", *limits: str) -> Response:
        limit = next((body[name] for name in limits if body.get(name) is not None), None)
        self._check(body, answer.prompt, limit)
        script = override(self._script, body.get("fake") or {}, limit, answer.prompt.said)
        tokens = self._tokens(answer.prompt, script)
        if body.get("stream"):
            return StreamingResponse(answer.stream(tokens), media_type="text/event-stream")
        words = []
        async with contextlib.aclosing(tokens):
            async for word in tokens:
                words.append(word)
                if script.rate and await request.is_disconnected():
                    return Response(status_code=CLIENT_GONE)
        return JSONResponse(answer.whole(words))

    def _check(self, body: dict[str, Any], prompt: Prompt, limit: Any) -> None:
        """What the real engines refuse too. Raises BadRequest."""
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise BadRequest(f"max_tokens is {limit!r}: give a whole number from 1", param="max_tokens")
        if not isinstance(body.get("temperature", 0), int | float | None):
            raise BadRequest("temperature must be a number", param="temperature")
        if prompt.tokens > self._max_model_len:
            raise BadRequest(
                f"the prompt has {prompt.tokens} tokens, and the model's context length is {self._max_model_len}: "
                "send less",
                code="context_length_exceeded",
            )

    async def _tokens(self, prompt: Prompt, script: Script) -> AsyncGenerator[str, None]:
        seed = seed_of(prompt.text)
        self._running += 1
        try:
            await self._awake.wait()  # a sleeping engine takes requests, and answers when it wakes
            for index in range(script.tokens):
                if script.fault and index >= script.after:
                    await self._go_wrong(script.fault)
                self._steps += 1
                yield word_of(seed, prompt.said + index)
                await asyncio.sleep(1 / script.rate if script.rate else 0)
        finally:
            self._running -= 1

    async def _go_wrong(self, fault: str) -> None:
        if fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "cut":
            raise ConnectionError("the fake engine was told to cut this answer")
        if fault in ("report", "short"):
            raise EngineDied(report=fault == "report")
        await asyncio.Event().wait()

    async def _embed(self, request: Request) -> Response:
        body = await read_json(request)
        given = body.get("input", "")
        inputs = given if isinstance(given, list) else [given]
        rows = [{"object": "embedding", "index": i, "embedding": embed(str(text))} for i, text in enumerate(inputs)]
        tokens = sum(len(str(text).split()) for text in inputs)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        self._steps += 1
        return JSONResponse({"object": "list", "model": body["model"], "data": rows, "usage": usage})


class Speech(Protocol):
    """The same words in the shape of some route."""

    @property
    def prompt(self) -> Prompt: ...

    def whole(self, words: list[str]) -> dict[str, Any]: ...

    def stream(self, tokens: AsyncIterator[str]) -> AsyncIterator[bytes]: ...


def override(script: Script, given: dict[str, Any], max_tokens: Any, said: int) -> Script:
    """The engine's script with the request's own over it, less the tokens ``said`` before. Raises BadRequest for an
    unknown key."""
    try:
        script = replace(script, **given)
    except TypeError as error:
        raise BadRequest(f"fake: {error}", param="fake") from error
    if script.fault not in FAULTS:
        raise BadRequest(f"fake: there is no fault {script.fault!r}: there are {', '.join(FAULTS)}", param="fake")
    left = max(script.tokens - said, 0)
    return replace(script, tokens=min(left, max_tokens) if isinstance(max_tokens, int) else left)


def embed(text: str) -> list[float]:
    """A unit vector that follows from the text."""
    digest = hashlib.sha256(text.encode()).digest()
    values = [byte - 127.5 for byte in digest[:DIMENSIONS]]
    norm = math.sqrt(sum(value * value for value in values))
    return [value / norm for value in values]


def check_messages(body: dict[str, Any]) -> None:
    if not isinstance(body.get("messages"), list):
        raise BadRequest("messages is missing: send a list of messages", param="messages")
    if body.get("tools"):
        raise BadRequest("the fake engine knows no tools", param="tools")


async def read_json(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from error
    if not isinstance(body, dict) or "model" not in body:
        raise BadRequest("the body must be a JSON object with a model")
    return body


async def answer_bad_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, BadRequest)
    return Response(error.body(), status_code=error.status, media_type="application/json")


async def answer_dead(_: Request, error: Exception) -> Response:
    assert isinstance(error, EngineDied)
    return JSONResponse(error.error(), status_code=500)
