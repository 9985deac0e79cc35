"""Border: flights that no worker of ours answers go to providers, and models that cannot answer to their fallbacks."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, Final

from monitor.registry import Replica, WorkerRegistry
from relay.flight import Flight
from relay.providers.errors import is_too_long
from relay.providers.fallbacks import Fallbacks, Why, rename, why_of
from relay.providers.providers import TRANSLATED, ProviderAnswer, Providers
from relay.request import parse_fields
from utils.common import url_host
from utils.errors import ApiError, BadRequest, ModelNotFound
from utils.logger import EventLogger

TOO_LONG: Final = "context_length_exceeded"
TOO_LONG_STATUSES: Final = frozenset({400, 413})
NO_FALLBACK: Final = frozenset({"deadline_exceeded", "rate_limit_exceeded"})
"""Errors that are the client's own: it has no more time, or has used up its limits."""

logger = EventLogger("relay")


class Border:
    """``serve`` takes a flight to the workers of its model. A flight's ``line`` is what it may still be asked of."""

    def __init__(
        self,
        registry: WorkerRegistry,
        providers: Providers,
        fallbacks: Fallbacks,
        serve: Callable[[Flight], None],
        room_timeout_s: float,
    ) -> None:
        self._registry = registry
        self._providers = providers
        self._fallbacks = fallbacks
        self._serve = serve
        self._room_timeout_s = room_timeout_s
        self._models: list[str] | None = None
        self._version = 0  # of the registry, then

    def models(self) -> Sequence[str]:
        """All names that may be asked for, in order; put together once for as long as nothing changes."""
        if self._models is None or self._version != self._registry.version:
            self._version = self._registry.version
            self._models = sorted({*self._registry.models(), *self._providers.models()})
        return self._models

    def lists(self, model: str) -> bool:
        """Whether it is one of them, and not covered by a wildcard: clients can make up any number of those."""
        return self._registry.route(model) is not None or model in self._providers.models()

    def enter(self, flight: Flight) -> None:
        """To the workers, or else the provider, of its model. Raises ApiError."""
        if self._registry.route(flight.model) is not None:
            self._serve(flight)
        elif flight.upload is None and self._providers.serves(flight.model):
            self._start(flight, self._ask(flight, flight.model))
        else:
            raise ModelNotFound(flight.model, self.models())

    def may_fall_back(self, flight: Flight) -> bool:
        return flight.upload is None and bool(self._line_of(flight, Why.UNAVAILABLE))

    def may_judge(self, flight: Flight, status: int) -> bool:
        """Whether ``judge`` wants to see an answer of this status before the client does."""
        if flight.upload is not None:
            return False
        if status == 404:
            return flight.call.route in TRANSLATED
        return status in TOO_LONG_STATUSES and bool(self._line_of(flight, Why.CONTEXT_WINDOW))

    def judge(self, flight: Flight, status: int, body: bytes, replica: Replica) -> bool:
        """Whether something else is done with the flight than to pass this answer of a worker on."""
        if status == 404:
            if flight.model.encode() in body:
                return False  # it is the model that the engine does not know
            self._translate(flight, replica)
            return True
        text = body.decode("utf-8", "replace")
        return is_too_long(text) and self.falls_back(flight, BadRequest(text, code=TOO_LONG))

    # -- fallbacks -------------------------------------------------------------------------------------------------

    def falls_back(self, flight: Flight, error: ApiError) -> bool:
        """Whether another model is asked instead. The flight has ended at the one that failed."""
        why = Why.UNAVAILABLE if isinstance(error, ModelNotFound) else why_of(error)
        if why is None or error.code in NO_FALLBACK or flight.upload is not None:
            return False
        flight.line = line = self._line_of(flight, why)
        while line:
            model, *rest = line
            flight.line = line = tuple(rest)
            if self._takes(flight, model):
                logger.info("falls_back", request_id=flight.id.decode(), was=flight.model, model=model, why=str(why))
                return self._move(flight, model)
        return False

    def _line_of(self, flight: Flight, why: Why) -> tuple[str, ...]:
        if flight.line is not None:
            return flight.line
        line = self._fallbacks.fallbacks_of(flight.model, why)
        if why is not Why.CONTEXT_WINDOW and self._registry.route(flight.model) is not None:
            line = (flight.model, *line)  # a provider may have the same model
        return tuple(model for model in line if self._takes(flight, model))

    def _takes(self, flight: Flight, model: str) -> bool:
        if model == flight.model:
            return self._providers.serves(model)
        return bool(self._registry.route(model)) or self._providers.serves(model)

    def _move(self, flight: Flight, model: str) -> bool:
        flight.tried, flight.last_error, flight.first_attempt = (), None, flight.attempts
        if model != flight.model and self._registry.route(model):
            flight.model, flight.body = model, rename(flight.body, model)
            flight.fields = parse_fields(flight.body)
            try:
                self._serve(flight)
            except ApiError as error:
                return self.falls_back(flight, error)
        else:
            self._start(flight, self._ask(flight, model))
        return True

    # -- what LiteLLM answers --------------------------------------------------------------------------------------

    def _translate(self, flight: Flight, replica: Replica) -> None:
        """The worker has no such route: ask by its chat route. LiteLLM translates there and back."""
        base = f"http://{url_host(replica.host)}:{replica.port}/v1"
        request_id = flight.id.decode("latin-1")
        call = self._providers.translate(flight.call.route, flight.body, flight.model, base, request_id)
        self._start(flight, self._pass_on(flight, call, replica.worker_id))

    async def _ask(self, flight: Flight, model: str) -> None:
        flight.model = model
        flight.attempts += 1
        call = self._providers.ask(flight.call.route, flight.body, model, flight.id.decode("latin-1"))
        await self._pass_on(flight, call, "")

    def _start(self, flight: Flight, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        flight.cancel_wait = task.cancel  # which also holds the task: the loop does so only weakly

    async def _wait_for_room(self, flight: Flight) -> None:
        try:
            async with asyncio.timeout(self._room_timeout_s):
                await flight.wait_for_room()
        except TimeoutError:
            flight.give_up()

    async def _pass_on(self, flight: Flight, call: Coroutine[Any, Any, ProviderAnswer], worker_id: str) -> None:
        """The top of a flight's task."""
        try:
            answer = await call
            flight.worker = worker_id or header_word(answer.model)
            flight.begin(answer.status, answer.headers, streams=answer.events is not None)
            if answer.events is None:
                flight.pass_on(answer.body or b"", last=True)
            else:
                async with aclosing(answer.events) as events:
                    async for piece in events:
                        flight.pass_on(piece, last=False)
                        if flight.is_full:
                            await self._wait_for_room(flight)
                flight.pass_on(b"", last=True)
        except ApiError as error:
            flight.cancel_wait = None
            flight.owner.fail(flight, error)
        except Exception as error:
            flight.cancel_wait = None
            flight.owner.crash(flight, error)
        else:
            flight.cancel_wait = None
            flight.owner.end(flight)


def header_word(name: str) -> str:
    """A model's name for a header: by a wildcard a client has chosen it, maybe with line ends."""
    return "".join(char if "!" <= char <= "~" else "?" for char in name)
