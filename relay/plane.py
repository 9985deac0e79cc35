"""DataPlane: the relay and all that it stands on, connected."""

import random

from config.settings import GatewaySettings
from monitor.metrics import RelayMetrics
from monitor.registry import WorkerRegistry
from relay.access import Access
from relay.admission.limits import Limits
from relay.border import Border
from relay.dispatch import Dispatcher
from relay.lobby import SWEEP_S, Lobby
from relay.providers.fallbacks import Fallbacks
from relay.providers.providers import Providers
from relay.relay import Relay
from relay.routing.breaker import Breakers
from relay.routing.router import Router
from relay.tracing.context import create_tracing
from relay.upstream.pool import Upstream


class DataPlane:
    """What the gateway's door, its metrics and its admin routes need of it."""

    def __init__(
        self,
        registry: WorkerRegistry,
        access: Access,
        settings: GatewaySettings,
        rng: random.Random,
        node: str = "",
        *,
        sweep_s: float = SWEEP_S,
    ) -> None:
        own = settings.server_settings
        self.registry = registry
        self.metrics = RelayMetrics()
        self.upstream = Upstream(connect_timeout_s=own.connect_timeout_s, answer_timeout_s=own.answer_timeout_s)
        self.breakers = breakers = Breakers(threshold=own.circuit_threshold, cooldown_s=own.circuit_cooldown_s)
        self.router = Router(registry, settings.routing, breakers, rng, node)
        dispatcher = Dispatcher(registry, self.upstream, self.router, breakers, self.metrics, own, rng)
        self.lobby = Lobby(settings.admission, registry, self.router, dispatcher, self.metrics, sweep_s=sweep_s)
        self.providers = Providers(settings.providers, answer_timeout_s=own.answer_timeout_s)
        fallbacks = Fallbacks.of(settings.providers)
        border = Border(registry, self.providers, fallbacks, self.lobby.enter, own.answer_timeout_s)
        self._tracing = create_tracing(own.otel_endpoint, rng)
        limits = Limits(own.keys)
        self.relay = Relay(access, limits, self.lobby, border, dispatcher, self.metrics, own, self._tracing)

    async def close(self) -> None:
        self.upstream.shutdown()
        await self.providers.close()
        if self._tracing is not None:
            await self._tracing.close()

    @property
    def in_flight(self) -> dict[str, int]:
        """Requests that this gateway has at each worker, by worker id."""
        return self.router.in_flight
