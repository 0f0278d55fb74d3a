"""A corpus that every machine has: the documentation inside Python's own standard library.

Modules are parsed, never imported, so that nothing of them runs. What comes out depends on the
Python version and on which modules the system installed, and on nothing else.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

# Installed on some systems and not on others, or tests rather than documentation.
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def documents() -> Iterator[str]:
    """One text a module: names, signatures and documentation strings in the order of the source.
    After the modules come the help topics of pydoc, one text each.

    Over 2 MB of English and Python. No documentation string comes twice. Modules in order of path.
    """
    library = Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if not _SKIPPED.intersection(parts):
            sections = list(_new_sections(path, parts, seen))
            if sections:
                yield "\n\n".join(sections)
    for topic in _topics(library / "pydoc_data" / "topics.py"):
        if topic not in seen:
            seen.add(topic)
            yield topic


def _new_sections(path: Path, parts: tuple[str, ...], seen: set[str]) -> Iterator[str]:
    """A title and a documentation string, for each that has not been seen before."""
    tree = _parse(path)
    if tree is None:
        return
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    for title, text in _docstrings(tree, f"module {module}", ""):
        if text not in seen:
            seen.add(text)
            yield f"{title}\n\n{text}"


def _docstrings(node: ast.AST, title: str, prefix: str) -> Iterator[tuple[str, str]]:
    """(title, documentation string) of a node and of what is defined in it, in order."""
    if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
        yield title, text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            name = f"{prefix}{child.name}"
            yield from _docstrings(child, f"class {name}", f"{name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}{child.name}"
            yield from _docstrings(child, f"{name}({ast.unparse(child.args)})", f"{name}.")
        elif isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from _docstrings(child, "", prefix)  # definitions under if, try and with


def _topics(path: Path) -> Iterator[str]:
    """The values of `topics = {name: text, …}`, in order of name."""
    tree = _parse(path)
    for node in tree.body if tree else []:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            yield from (text.strip() for _, text in sorted(ast.literal_eval(node.value).items()))


def _parse(path: Path) -> ast.Module | None:
    """None for what is no source of this Python version: templates, samples, broken installs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
