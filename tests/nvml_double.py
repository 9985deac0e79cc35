"""pynvml's functions over GPUs that a test describes."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml

GIB = 2**30


@dataclass
class Card:
    """A GPU. ``refuses``: pynvml's error code by the name of the function that fails for it."""

    uuid: str
    name: str = "NVIDIA H100"
    slices: list[str | None] = field(default_factory=list)
    refuses: dict[str, int] = field(default_factory=dict)


class Nvml:
    """What ``read_gpus`` takes in place of the module. ``opened`` and ``closed`` count."""

    def __init__(self, *cards: Card, refuses: dict[str, int] | None = None) -> None:
        self._cards = cards
        self._refuses = refuses or {}
        self.opened = self.closed = 0

    def _check(self, function: str, refuses: dict[str, int]) -> None:
        if function in refuses:
            raise pynvml.NVMLError(refuses[function])

    def nvmlInit(self) -> None:
        self._check("init", self._refuses)
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.closed += 1
        self._check("shutdown", self._refuses)

    def nvmlDeviceGetCount(self) -> int:
        self._check("count", self._refuses)
        return len(self._cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        self._check("handle", self._cards[index].refuses)
        return self._cards[index]

    def nvmlDeviceGetName(self, card: Card) -> str:
        self._check("name", card.refuses)
        return card.name

    def nvmlDeviceGetUUID(self, handle: Card | str) -> str:
        return handle if isinstance(handle, str) else handle.uuid

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> Any:
        self._check("memory", card.refuses)
        return SimpleNamespace(total=80 * GIB, used=GIB)

    def nvmlDeviceGetUtilizationRates(self, card: Card) -> Any:
        self._check("load", card.refuses)
        return SimpleNamespace(gpu=7)

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Card) -> int:
        if not card.slices:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return len(card.slices)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Card, slot: int) -> str:
        uuid = card.slices[slot]
        if uuid is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid
