"""Which model is where: an index, kept up as workers change, so that one of a thousand costs what it alone does."""

from collections.abc import Iterable
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from monitor.registry import Replica


class Place(NamedTuple):
    """What of a worker routing depends on. ``names``: of all its models, those of adapters too."""

    names: tuple[str, ...]
    replica: "Replica"
    is_ready: bool


class Routes:
    """``ready``: name -> the ready replicas of a model. One whose workers are all away keeps its name, with none."""

    def __init__(self) -> None:
        self.ready: dict[str, tuple[Replica, ...]] = {}
        self.version = 0
        """Grows with every change."""
        self._places: dict[str, Place] = {}
        self._ranks: dict[str, int] = {}  # of workers: who came first
        self._arrivals = count()
        self._holders: dict[str, dict[str, None]] = {}  # name -> ids of its workers
        self._called: dict[str, dict[str, None]] = {}  # the same without adapters, which are models of their own
        self._own: dict[str, str] = {}
        self._others: dict[str, list[str]] = {}
        self._models: list[str] | None = None

    # -- reading ---------------------------------------------------------------------------------------------------

    def models(self) -> list[str]:
        """All names, in order. To be copied by whoever changes it."""
        if self._models is None:
            self._models = sorted(self.ready)
        return self._models

    def holders(self, model: str) -> Iterable[str]:
        """The ids of its workers, ready or not."""
        return self._holders.get(model, ())

    def own_name(self, model: str) -> str:
        """Alias -> the name of its model, for aliases that are one at each of the model's workers, ready or not, and
        at no other: whoever asks by the one may as well ask by the other. An alias of several models, or of some
        replicas, is a name of its own.
        """
        return self._own.get(model, model)

    def names_of(self, model: str) -> list[str]:
        """All names of the model whose own name this is; that first."""
        return [model, *self._others.get(model, ())]

    # -- keeping it up ---------------------------------------------------------------------------------------------

    def update(self, worker_id: str, place: Place | None) -> None:
        """The worker is so now; None: it has gone."""
        old = self._places.get(worker_id)
        if place == old:
            return
        self.version += 1
        if place is None:
            del self._places[worker_id], self._ranks[worker_id]
        else:
            self._places[worker_id] = place
            self._ranks.setdefault(worker_id, next(self._arrivals))
        before, after = names_in(old), names_in(place)
        note(self._holders, worker_id, before, after)
        # Where it is what it was, only the models that came or went: a worker may have thousands of adapters.
        is_same = old is not None and place is not None and old[1:] == place[1:]
        for name in before.keys() ^ after.keys() if is_same else before | after:
            self._route(name)
        called_before, called_after = called_in(old), called_in(place)
        if list(called_before) != list(called_after):
            note(self._called, worker_id, called_before, called_after)
            self._name(called_before | called_after)

    def _route(self, name: str) -> None:
        if name not in self.ready or name not in self._holders:
            self._models = None
        places = [self._places[worker_id] for worker_id in self._holders.get(name, ())]
        if places:
            self.ready[name] = tuple(place.replica for place in places if place.is_ready)
        else:
            self.ready.pop(name, None)

    def _name(self, changed: Iterable[str]) -> None:
        """Find the own names anew of these, and of those that their workers have beside them: no other is concerned."""
        near = {worker_id for name in changed for worker_id in self._called.get(name, ())}
        groups: dict[frozenset[str], list[str]] = {}
        beside = (name for each in near for name in called_in(self._places[each]))
        for name in dict.fromkeys([*changed, *beside]):
            self._own.pop(name, None)
            self._others.pop(name, None)
            if name in self._called:
                groups.setdefault(frozenset(self._called[name]), []).append(name)
        for workers, names in groups.items():
            if len(names) > 1:
                first = called_in(self._places[min(workers, key=self._ranks.__getitem__)])
                own, *others = (name for name in first if name in names)
                self._others[own] = others
                self._own.update(dict.fromkeys(others, own))


def names_in(place: Place | None) -> dict[str, None]:
    return dict.fromkeys(place.names) if place is not None else {}


def called_in(place: Place | None) -> dict[str, None]:
    """Its model's names."""
    return dict.fromkeys(place.replica.names) if place is not None else {}


def note(index: dict[str, dict[str, None]], worker_id: str, before: dict[str, None], after: dict[str, None]) -> None:
    """Keep up who has which name."""
    for name in before.keys() - after.keys():
        del index[name][worker_id]
        if not index[name]:
            del index[name]
    for name in after.keys() - before.keys():
        index.setdefault(name, {})[worker_id] = None
