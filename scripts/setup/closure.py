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
        self.add(packages)
        self._leaves = {canonicalize_name(name) for name in leaves}
        self._dropped = {canonicalize_name(name) for name in dropped}

    def add(self, packages: Iterable[Mapping[str, Any]]) -> None:
        """More packages of a report."""
        self.metadata |= {canonicalize_name(one["metadata"]["name"]): one["metadata"] for one in packages}

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
        if name in self._leaves or name not in self.metadata:
            return []
        wanted = [Requirement(line) for line in self.metadata[name].get("requires_dist", [])]
        return [one for one in wanted if one.marker is None or one.marker.evaluate({**where, "extra": extra})]
