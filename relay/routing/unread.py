"""Unread: prompts whose blocks nobody has counted yet: those of models with one replica, where there is no choice."""

from collections import OrderedDict, deque
from typing import Final, NamedTuple

from relay.request import RequestFields

MAX_OF_MODEL: Final = 256
MAX_BYTES: Final = 64 * 1024 * 1024
"""Of all prompts of all models together: a thousand models with one replica each are usual."""


class Prompt(NamedTuple):
    """``fields`` keep the whole body, of ``size`` bytes, in memory."""

    fields: RequestFields
    worker_id: str
    size: int


class Unread:
    """The last prompts of each model, at most ``MAX_OF_MODEL``. In ``max_bytes`` the models have room that were asked
    last.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._models: OrderedDict[str, deque[Prompt]] = OrderedDict()
        self.size = 0
        """Bytes."""

    def __len__(self) -> int:
        """Of models."""
        return len(self._models)

    def add(self, model: str, prompt: Prompt) -> None:
        prompts = self._models.get(model)
        if prompts is None:
            prompts = self._models[model] = deque()
        else:
            self._models.move_to_end(model)
        prompts.append(prompt)
        self.size += prompt.size
        if len(prompts) > MAX_OF_MODEL:
            self.size -= prompts.popleft().size
        while self.size > self._max_bytes:
            _, dropped = self._models.popitem(last=False)
            self.size -= sum(each.size for each in dropped)

    def take(self, model: str) -> deque[Prompt]:
        """All of a model, which are read now, in the order in which they came."""
        prompts = self._models.pop(model, None) or deque()
        self.size -= sum(each.size for each in prompts)
        return prompts

    def forget(self, model: str, worker_id: str) -> None:
        """What was sent there is cached there no more."""
        left = [each for each in self.take(model) if each.worker_id != worker_id]
        if left:
            self._models[model] = deque(left)
            self.size += sum(each.size for each in left)
