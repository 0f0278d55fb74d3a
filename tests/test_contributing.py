"""What CONTRIBUTING.md says of linters and benchmarks is what the files say."""

from __future__ import annotations

import re

import yaml
from documents import ROOT


def test_the_hooks_are_what_make_lint_runs() -> None:
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.findall(r"^lint:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)[0]
    lint = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert [hook["entry"] for hook in repository["hooks"]] == lint


def test_every_benchmark_is_named() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    programs = {
        f"benchmarks/{path.name}"
        for path in (ROOT / "benchmarks").glob("*.py")
        if "    python benchmarks/" in path.read_text()  # the others are parts of these
    }
    assert programs == set(re.findall(r"benchmarks/\w+\.py", text))
