"""The house: which room may import which (doc/structure.md), read from the sources."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"api", "backends", "config", "fleet", "monitor", "relay", "utils", "worker"}
MAY_IMPORT = {
    "utils": set(),
    "config": {"utils"},
    "backends": {"config", "utils"},
    "monitor": {"config", "utils"},
    "fleet": {"monitor", "config", "utils"},
    "relay": {"monitor", "config", "utils"},
    "worker": {"backends", "monitor", "config", "utils"},
    "api": {"relay", "fleet", "monitor", "config", "utils"},
    "gateway.py": ROOMS - {"backends", "worker"},
    "serve.py": {"worker", "backends", "monitor.heartbeat", "monitor.logs", "monitor.system", "config", "utils"},
}
ONLY_IN = {
    "vllm": "backends/vllm_backend.py",
    "sglang": "backends/sglang_backend.py",
    "litellm": "relay/providers/providers.py",
}
"""Engines and LiteLLM: each imported in one file, and there not at its top."""
MAX_LINES = 400


def sources() -> list[Path]:
    rooms = [path for room in sorted(ROOMS) for path in sorted((ROOT / room).rglob("*.py"))]
    return [ROOT / "gateway.py", ROOT / "serve.py", *rooms]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether imported at the top of the file)."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((f"{node.module}.{alias.name}", id(node) in top) for alias in node.names)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_the_rooms_below_it(path: Path) -> None:
    room = room_of(path)
    allowed = MAY_IMPORT[room] | {room}
    for module, _ in imports(path):
        if module.split(".")[0] in ROOMS:
            names = {module.split(".")[0], ".".join(module.split(".")[:2])}
            assert names & allowed, f"{path.relative_to(ROOT)} imports {module}, which {room} may not"


def test_an_engine_is_imported_in_one_file_only_and_late() -> None:
    for path in sources():
        here = str(path.relative_to(ROOT))
        for module, at_top in imports(path):
            home = ONLY_IN.get(module.split(".")[0])
            assert home is None or home == here, f"{here} imports {module}, which belongs into {home}"
            assert home is None or not at_top, f"{here} imports {module} at its top: engines load late"


def test_every_package_file_is_empty_but_that_of_backends() -> None:
    for path in sources():
        if path.name == "__init__.py" and path.parent != ROOT / "backends":
            assert not path.read_text(), path


def test_no_file_is_long() -> None:
    for path in sources():
        assert len(path.read_text().splitlines()) <= MAX_LINES, path


def test_importing_a_room_runs_nothing() -> None:
    """At the top of a module stand imports, definitions, constants and loggers; no loops, no calls for an effect."""
    for path in sources():
        for node in ast.parse(path.read_text()).body:
            assert not isinstance(node, ast.For | ast.While | ast.With | ast.Try), f"{path}:{node.lineno}"
            is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            assert not is_call, f"{path}:{node.lineno}: a call at import"


def test_all_rooms_are_packaged() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for path in sources():
        folder = path.parent.relative_to(ROOT)
        package = ".".join(folder.parts)
        assert not package or f'"{package}"' in text or f'"{folder.name}/*.py"' in text, path
