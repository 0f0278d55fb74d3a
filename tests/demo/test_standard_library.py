from __future__ import annotations

import itertools
import sys

import pytest

from chopjax.demo.standard_library import documents


@pytest.fixture(scope="module")
def corpus() -> tuple[set[str], list[str]]:
    """The modules that were imported before, and the texts."""
    return set(sys.modules), list(documents())


def test_the_corpus_is_large_unique_and_begins_the_same_every_time(
    corpus: tuple[set[str], list[str]],
) -> None:
    modules, texts = corpus
    assert sum(map(len, texts)) > 1_500_000
    assert len(set(texts)) == len(texts) > 300
    assert all(texts)
    assert texts[:100] == list(itertools.islice(documents(), 100))
    # Nothing was imported to get at its documentation.
    assert "pydoc_data" not in modules or "antigravity" not in sys.modules
    assert not {"antigravity", "this", "turtle"} & (set(sys.modules) - modules)


def test_names_signatures_and_topics_are_there(corpus: tuple[set[str], list[str]]) -> None:
    text = "\n\n".join(corpus[1])
    assert "module json\n\n" in text
    assert "Subject to the restrictions in the following rules" not in text
    assert "dumps(obj, *, skipkeys=False" in text
    assert 'The "yield" statement' in text
