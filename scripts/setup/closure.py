"""Which packages a set of requirements reaches, on this machine or on another: read from pip's report."""

from collections.abc import Iterable, Mapping
from typing import Any

from pip._vendor.packaging.markers import default_environment
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

Environment = Mapping[str, str]


class Closure:
    """Walks what packages require. They are those below ``install`` in a report of ``pip install --report``."""

    def __init__(
        self, packages: Iterable[Mapping[str, Any]], leaves: Iterable[str] = (), dropped: Iterable[str] = ()
    ) -> None:
        """``leaves`` are taken without their own requirements; ``dropped`` are not taken at all."""
        self.metadata: dict[str, dict[str, Any]] = {}
        self._requirements: dict[str, list[Requirement]] = {}
        self.add(packages)
        self._leaves = {canonicalize_name(name) for name in leaves}
        self._dropped = {canonicalize_name(name) for name in dropped}

    def add(self, packages: Iterable[Mapping[str, Any]]) -> None:
        """More packages of a report."""
        for one in packages:
            name = canonicalize_name(one["metadata"]["name"])
            self.metadata[name] = one["metadata"]
            # Parsed once: pip's parser is slow, and every machine and Python walks all of it again.
            self._requirements[name] = [Requirement(line) for line in one["metadata"].get("requires_dist", [])]

    def reach(self, roots: Iterable[str], environment: Environment | None = None) -> set[str]:
        """The canonical names that the requirements reach, those absent from the report included."""
        where = {**default_environment(), **(environment or {})}
        seen: set[tuple[str, str]] = set()
        todo = [Requirement(root) for root in roots]
        while todo:
            requirement = todo.pop()
            name = canonicalize_name(requirement.name)
            for extra in ("", *requirement.extras):
                if (name, extra) in seen or name in self._dropped:
                    continue
                seen.add((name, extra))
                todo += self._wanted_by(name, extra, where)
        return {name for name, _ in seen}

    def _wanted_by(self, name: str, extra: str, where: Environment) -> list[Requirement]:
        wanted = [] if name in self._leaves else self._requirements.get(name, [])
        return [one for one in wanted if one.marker is None or one.marker.evaluate({**where, "extra": extra})]
