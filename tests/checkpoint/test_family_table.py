"""The table of model types, and README's copy of it."""

from __future__ import annotations

from pathlib import Path

from chopjax.checkpoint.family_table import CHOP, COMPUTE, markdown, options, table, with_table
from chopjax.checkpoint.structures import ROWS, WRAPPERS
from chopjax.models.families import FAMILIES

README = Path(__file__).parents[2] / "README.md"


def test_readme_is_current() -> None:
    text = README.read_text()
    assert text == with_table(text), "python -m chopjax.checkpoint.family_table README.md"


def test_every_model_type_once() -> None:
    names = [row["model_type"] for row in table()]
    assert sorted(names) == sorted({*ROWS, *WRAPPERS, *FAMILIES})
    assert {row["depth"] for row in table()} == {CHOP, COMPUTE}
    assert all(f"`{name}`" in markdown() for name in names)


def test_options_are_the_keys_that_are_asked_for() -> None:
    assert "tie_word_embeddings" in options(FAMILIES["llama"])
    assert "hidden_size" not in options(FAMILIES["llama"])
    assert "sliding_window" in options(FAMILIES["qwen3"])
