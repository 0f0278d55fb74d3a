"""README and docs/: every command's verb and flags exist, every recipe loads with the fields it is
given, every path is there."""

from __future__ import annotations

import re
from pathlib import Path

import documents
import pytest
from documents import PAGES, ROOT

from chopjax.commands import parser
from chopjax.train.config_file import load_config

COMMANDS = [
    pytest.param(words, id=f"{documents.name(page)}: {' '.join(words)}")
    for page in PAGES
    for words in documents.commands(page.read_text())
]


def test_there_are_commands_to_check() -> None:
    verbs = {words[0] for words in documents.commands((ROOT / "README.md").read_text())}
    assert verbs >= {"inspect", "chop", "run", "prepare", "train", "score"}
    shown = {words[0] for page in PAGES for words in documents.commands(page.read_text())}
    assert shown >= set(parser.VERBS)


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_parse(words: list[str]) -> None:
    arguments = parser.parse(words)
    if "config" in arguments:
        load_config(ROOT / arguments.config, arguments.set)


@pytest.mark.parametrize("recipe", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.name)
def test_every_recipe_loads(recipe: Path) -> None:
    load_config(recipe)


@pytest.mark.parametrize("page", PAGES, ids=documents.name)
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", page.read_text(), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES, ids=documents.name)
def test_paths_exist(page: Path) -> None:
    text = page.read_text()
    gone = [path for path in documents.paths(text) if not any(ROOT.glob(path.rstrip("/")))]
    assert not gone, f"{documents.name(page)}: {', '.join(sorted(gone))}"
    links = [link for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) if link]
    gone = [link for link in links if not (page.parent / link).exists()]
    assert not gone, f"{documents.name(page)}: {', '.join(gone)}"
