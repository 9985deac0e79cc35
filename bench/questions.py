"""What the load generator asks: requests as bytes, and what must come of each. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from bench.answers import answer_to, request_body
from bench.plan import Plan

SEEDS: Final = 16
"""So many different questions are asked in turn: a mixed-up answer is noticed."""
CLIENT_KEY: Final = "bench-key"
PLAIN_HEADERS: Final = ("accept: */*", "user-agent: ichat-bench", f"authorization: Bearer {CLIENT_KEY}")
OPENAI_HEADERS: Final = (
    "accept-encoding: gzip, deflate", "connection: keep-alive", "accept: application/json",
    "user-agent: AsyncOpenAI/Python 2.54.0", "x-stainless-lang: python", "x-stainless-package-version: 2.54.0",
    "x-stainless-os: Linux", "x-stainless-arch: x64", "x-stainless-runtime: CPython",
    "x-stainless-runtime-version: 3.11.7", f"authorization: Bearer {CLIENT_KEY}", "x-stainless-async: async:asyncio",
    "x-stainless-retry-count: 0", "x-stainless-read-timeout: 600",
)  # fmt: skip
"""What the openai package sends besides host, type and length."""
MIXTURE: Final = {"whole": 84, "refused": 3, "failed": 1, "unknown model": 2, "stream": 7, "left stream": 3}
"""Of a hundred requests. A refusal and a failure are the engine's, an unknown model is the gateway's own."""
MIXTURE_STRIDE: Final = 37
"""Prime to 100, so that the kinds come in turn and not in blocks."""
MIXTURE_CHUNKS: Final = 6
FILLER: Final = "What went before in this conversation stands here, as it does in front of most questions. " * 20


@dataclass(frozen=True, slots=True)
class Question:
    """``body``: of the right answer; None: not compared. ``leaves``: the client goes at the first piece."""

    request: bytes
    body: bytes | None
    status: int = 200
    leaves: bool = False


def questions(plan: Plan) -> Callable[[int], Question]:
    """The question of every number."""
    if plan.mixture:
        return lambda number: mixed_question(plan, plan.first + number)
    made = [question(plan, request_body(seed, plan.chunks)) for seed in range(SEEDS)]
    return lambda number: made[number % len(made)]


def question(plan: Plan, body: bytes) -> Question:
    answer = answer_to(body)
    return Question(request(plan, body), answer.body, answer.status)


def kind_of(number: int) -> str:
    """Which part of the mixture a request is."""
    place = number * MIXTURE_STRIDE % 100
    for kind, share in MIXTURE.items():
        if place < share:
            return kind
        place -= share
    raise AssertionError("the mixture's parts are a hundred")


def mixed_question(plan: Plan, number: int) -> Question:
    """Each with a prompt of its own, about 2 KB long, so that what the gateway remembers of prompts grows if it can."""
    kind = kind_of(number)
    more: dict[str, Any] = {"messages": [{"role": "user", "content": f"Conversation {number}. {FILLER}"}]}
    if kind == "unknown model":
        return Question(request(plan, request_body(number, 0, **more, model="not-there")), None, 404)
    if kind in ("stream", "left stream"):
        body = request_body(number, MIXTURE_CHUNKS, **more)
        return Question(request(plan, body), answer_to(body).body, leaves=kind == "left stream")
    if kind in ("refused", "failed"):
        more["bench_status"] = 400 if kind == "refused" else 500
    return question(plan, request_body(number, 0, **more))


def request(plan: Plan, body: bytes) -> bytes:
    lines = (
        "POST /v1/chat/completions HTTP/1.1", f"host: 127.0.0.1:{plan.port}",
        *(OPENAI_HEADERS if plan.openai_headers else PLAIN_HEADERS),
        "content-type: application/json", f"content-length: {len(body)}", "\r\n",
    )  # fmt: skip
    return "\r\n".join(lines).encode() + body
