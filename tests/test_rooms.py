"""The picture in ARCHITECTURE.md stays true: rooms import downwards, and no file in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "chopjax"
# From the ground up. A room imports only from those before it; files right in the package are the
# ground or, those in DOORS, stand above all rooms.
ROOMS = (
    "ground",
    "disk",
    "models",
    "checkpoint",
    "data",
    "launch",
    "chop",
    "sparsify",
    "narrow",
    "quantize",
    "score",
    "generate",
    "latency",
    "train",
    "classify",
    "plan",
    "report",
    "runs",
    "demo",
    "commands",
    "doors",
)
DOORS = ("cli", "__main__", "__init__", "flax_decoder", "pipeline_settings", "sweep_settings")


def room_of(module: str) -> str:
    """`chopjax.models.decoder` → models."""
    parts = module.split(".")
    if len(parts) > 1 and (PACKAGE / parts[1]).is_dir():
        return parts[1]
    return "doors" if len(parts) == 1 or parts[1] in DOORS else "ground"


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of the package that a file takes names from, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield inner if inner in known else node.module or ""


def test_rooms_import_downwards() -> None:
    known = modules()
    upwards = [
        f"{module} ({room_of(module)}) takes from {other} ({room_of(other)})"
        for module, path in sorted(known.items())
        for other in imports(path, known)
        # The version stands in the package's own file.
        if other != "chopjax" and ROOMS.index(room_of(other)) > ROOMS.index(room_of(module))
    ]
    assert not upwards, "\n".join(upwards)


def test_every_folder_is_a_room() -> None:
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders == set(ROOMS) - {"ground", "doors"}


def test_no_circles() -> None:
    known = modules()
    graph = {m: {o for o in imports(p, known) if o not in (m, "chopjax")} for m, p in known.items()}
    while free := [module for module, needs in graph.items() if not needs & graph.keys()]:
        for module in free:
            del graph[module]
    assert not graph, "\n".join(
        f"{m}: {', '.join(sorted(n & graph.keys()))}" for m, n in graph.items()
    )
