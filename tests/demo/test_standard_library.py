from __future__ import annotations

import sys

from chopjax.demo.standard_library import documents


def test_the_corpus_is_large_unique_and_the_same_every_time() -> None:
    modules = set(sys.modules)
    texts = list(documents())
    assert sum(map(len, texts)) > 1_500_000
    assert len(set(texts)) == len(texts) > 300
    assert all(texts)
    assert texts == list(documents())
    # Nothing was imported to get at its documentation.
    assert "pydoc_data" not in modules or "antigravity" not in sys.modules
    assert not {"antigravity", "this", "turtle"} & (set(sys.modules) - modules)


def test_names_signatures_and_topics_are_there() -> None:
    text = "\n\n".join(documents())
    assert "module json\n\n" in text
    assert "Subject to the restrictions in the following rules" not in text
    assert "dumps(obj, *, skipkeys=False" in text
    assert 'The "yield" statement' in text
