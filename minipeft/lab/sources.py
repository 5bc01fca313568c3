"""Which source files a result depends on: found by following the imports.

    from ..lora import LoraConfig          that file
    from ..nf4 import quantize_model       by the door of a room: every file in it
"""
import ast
from collections.abc import Iterable, Iterator
from pathlib import Path


def sources(start: Path) -> list[Path]:
    """`start`, a file of the package, and every file of the package that it leads to, sorted."""
    found, waiting = set(), [start]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += imported(path)
    return sorted(found)


def imported(path: Path) -> Iterator[Path]:
    """The files that the relative imports of one file name, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = [] if node.module is None else node.module.split(".")
            base = path.parents[node.level - 1].joinpath(*parts)
            for alias in node.names:
                yield from files_of(base, alias.name)


def files_of(base: Path, name: str) -> Iterable[Path]:
    """Where `from base import name` leads."""
    for path in (base / f"{name}.py", base.with_suffix(".py")):
        if path.exists():
            return [path]
    room = base / name if (base / name).is_dir() else base
    return room.rglob("*.py")
