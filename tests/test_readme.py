"""README's commands: every verb and flag exists, every recipe loads with the fields it is given."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from chopjax.commands import parser
from chopjax.train.config_file import load_config

ROOT = Path(__file__).parents[1]


def commands(text: str) -> list[list[str]]:
    """The `chopjax …` lines of all shell blocks, continued lines joined."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line and line[0] == "chopjax"]


README = commands((ROOT / "README.md").read_text())


def test_there_are_commands_to_check() -> None:
    assert {line[0] for line in README} >= {"inspect", "chop", "run", "prepare", "train", "score"}


@pytest.mark.parametrize("words", README, ids=" ".join)
def test_readme_commands_parse(words: list[str]) -> None:
    arguments = parser.parse(words)
    if "config" in arguments:
        load_config(ROOT / arguments.config, arguments.set)


@pytest.mark.parametrize("recipe", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.name)
def test_every_recipe_loads(recipe: Path) -> None:
    load_config(recipe)


def test_make_targets_of_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
