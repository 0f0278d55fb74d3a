"""The repository's documents, as tests read them: shell lines, Python blocks, paths."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """The words after `chopjax` of every such line in shell blocks, continued lines joined, up to
    where the shell sends the output elsewhere."""
    lines = "".join(blocks(text, "sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    ours = [line[1:] for line in words if line and line[0] == "chopjax"]
    return [list(itertools.takewhile(lambda word: word not in (">", "|"), line)) for line in ours]


def run_python(page: Path, names: dict[str, Any], **replaced: str) -> dict[str, Any]:
    """Run a page's Python blocks one after the other in one namespace, and return it.

    replaced: what stands in for the page's words, by the names below; a word that the page does
    not have is an error.
    """
    text = page.read_text()
    for key, instead in replaced.items():
        assert WORDS[key] in text, f"{page}: {WORDS[key]} is not in it"
        text = text.replace(WORDS[key], instead)
    for block in blocks(text, "python"):
        exec(compile(block, str(page), "exec"), names)
    return names


# What the pages call a model of 30 layers, and layers of it that stay.
WORDS = {"model": "HuggingFaceTB/SmolLM-135M", "keep": "0,16-29"}


def paths(text: str) -> set[str]:
    """What stands in backticks and is a path of this repository: it has a slash, and its first
    part is one of the folders that the repository has."""
    spans = re.findall(
        r"`([\w.-]+(?:/[\w.*-]*)+)`", re.sub(r"(?s)^```.*?^```", "", text, flags=re.M)
    )
    tops = {path.name for path in ROOT.iterdir() if path.is_dir()}
    return {span for span in spans if span.split("/")[0] in tops}
