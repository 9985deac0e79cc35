"""Requests of the worker's own to its engine, through the engine's real routes: warm-up, and the canary."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final

import httpx

from utils.errors import IChatError

CANARY: Final = "The capital of France is"
PROBE_TOKENS: Final = 8
TOLERANCE: Final = 1e-2
"""How far numbers may lie apart that mean the same: an engine does not always add up in the same order."""

Request = tuple[str, dict[str, Any]]
"""(path, body)."""
Gist = tuple[str | float, ...]
"""What an answer says, without its id and times: texts, or numbers."""


class NoAnswer(IChatError):
    """The engine did not answer a request of the worker's own. ``str()`` says what it did instead."""


class InnerClient:
    """Asks the engine's app without a socket. ``headers``: what the app asks of every caller, such as a key."""

    def __init__(
        self, app: Callable[[Any, Any, Any], Awaitable[None]], headers: Mapping[str, str], timeout_s: float
    ) -> None:
        self._app = app
        self._headers = dict(headers)
        self._timeout_s = timeout_s

    async def post(self, request: Request) -> dict[str, Any]:
        """The answer's JSON. Raises NoAnswer for any but a good one within the time."""
        path, body = request
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self._app), base_url="http://worker", headers=self._headers
        ) as client:
            try:
                async with asyncio.timeout(self._timeout_s):  # the client's own limits are for sockets
                    answer = await client.post(path, json=body)
            except TimeoutError:
                raise NoAnswer(f"{path} got no answer in {self._timeout_s:g} s") from None
        if answer.status_code != 200:
            raise NoAnswer(f"{path} failed: HTTP {answer.status_code}: {answer.text[:500]}")
        try:
            found: dict[str, Any] = answer.json()
        except ValueError as error:
            raise NoAnswer(f"{path} was answered by what is not JSON: {error}") from None
        return found


def probe(model: str, tasks: Collection[str], text: str) -> Request | None:
    """A small request with always the same answer, of a kind that the engine does; None where it does none of them."""
    if "generate" in tasks:
        # With log-probabilities, whose first request compiles what the others do not need.
        return "/v1/completions", {"model": model, "prompt": text, "max_tokens": PROBE_TOKENS, "temperature": 0,
                                   "logprobs": 1}  # fmt: skip
    if "embed" in tasks:
        return "/v1/embeddings", {"model": model, "input": text}
    if "score" in tasks or "classify" in tasks:
        return "/v1/rerank", {"model": model, "query": text, "documents": [text, CANARY]}
    return None


def gist_of(answer: Mapping[str, Any]) -> Gist:
    """The gist of a ``probe``'s answer."""
    if "choices" in answer:
        return tuple(str(choice["text"]) for choice in answer["choices"])
    if "data" in answer:
        return tuple(float(value) for row in answer["data"] for value in row["embedding"])
    rows = sorted(answer["results"], key=lambda row: int(row["index"]))
    return tuple(float(row["relevance_score"]) for row in rows)


def means_the_same(one: Gist, other: Gist) -> bool:
    return len(one) == len(other) and all(map(is_alike, one, other))


def is_alike(one: str | float, other: str | float) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return math.isclose(one, other, abs_tol=TOLERANCE)
