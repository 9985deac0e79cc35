"""Which packages a set of requirements reaches, on this machine or on another: read from pip's report."""

from collections.abc import Iterable, Mapping
from typing import Any

from pip._vendor.packaging.markers import default_environment
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

Environment = Mapping[str, str]


class Closure:
    """Walks the requirements of the packages in a report of ``pip install --dry-run --report``."""

    def __init__(self, report: Mapping[str, Any], leaves: Iterable[str] = (), dropped: Iterable[str] = ()) -> None:
        """``leaves`` are taken without their own requirements; ``dropped`` are not taken at all."""
        self.metadata = {canonicalize_name(item["metadata"]["name"]): item["metadata"] for item in report["install"]}
        self._leaves = {canonicalize_name(name) for name in leaves}
        self._dropped = {canonicalize_name(name) for name in dropped}

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
