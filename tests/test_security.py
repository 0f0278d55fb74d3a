"""What SECURITY.md says of limits and of code that is not run, as far as the source shows it."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from documents import ROOT

from chopjax.checkpoint.safetensors_file import MAX_HEADER_BYTES
from chopjax.checkpoint.source import PICKLES
from chopjax.disk.files import MAX_JSON_BYTES, MAX_JSON_DEPTH
from chopjax.models.families.options import MAX_LAYERS, MAX_SIZE

TEXT = " ".join((ROOT / "SECURITY.md").read_text().split())


def calls() -> Iterator[ast.Call]:
    for path in (ROOT / "chopjax").rglob("*.py"):
        tree = ast.parse(path.read_text())
        yield from (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def test_limits() -> None:
    assert f"at most {MAX_HEADER_BYTES // 10**6} MB, no name twice" in TEXT
    assert f"at most {MAX_JSON_BYTES // 10**6} MB and {MAX_JSON_DEPTH} levels deep" in TEXT
    assert f"({MAX_LAYERS:,} layers, no dimension above 2³¹ - 1)" in TEXT
    assert MAX_SIZE == 2**31 - 1
    assert all(f"`{pattern[1:]}`" in TEXT for pattern in PICKLES if pattern != "*.pickle")


def test_code_of_a_repository_is_never_asked_for() -> None:
    loads = [
        {key.arg: key.value for key in call.keywords}
        for call in calls()
        if isinstance(call.func, ast.Attribute) and call.func.attr == "from_pretrained"
    ]
    assert loads
    for keywords in loads:
        off = keywords.get("trust_remote_code")
        assert isinstance(off, ast.Constant)
        assert off.value is False


def test_nothing_evaluates_text() -> None:
    named = {call.func.id for call in calls() if isinstance(call.func, ast.Name)}
    assert not named & {"eval", "exec", "compile"}
