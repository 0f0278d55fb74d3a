"""Every text has a name of its own, whatever the paths."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chopjax.errors import UserError
from chopjax.score.texts import own_names


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a", "b", "b/c", "piqa"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    assert own_names(["a/test.jsonl"], ["piqa"]) == ["test.jsonl"]
    assert own_names(["a/test.jsonl", "b/test.jsonl"], []) == ["a_test.jsonl", "b_test.jsonl"]
    found = own_names(["b/test.jsonl", "b/c/test.jsonl", "a"], [])
    assert found == ["b_test.jsonl", "c_test.jsonl", "a"]
    assert own_names(["piqa"], ["piqa"]) == [f"{tmp_path.name}_piqa"]
    monkeypatch.chdir(tmp_path / "b")
    assert own_names(["test.jsonl", "c/test.jsonl"], ["c_test.jsonl"]) == [
        "b_test.jsonl",
        "b_c_test.jsonl",
    ]
    assert own_names(["hf:owner/name:train", "gs://bucket/x.jsonl"], []) == [
        "name_train",
        "x.jsonl",
    ]
    with pytest.raises(UserError, match=r"--text \.\./b/test.jsonl: the same text twice"):
        own_names(["test.jsonl", "../b/test.jsonl"], [])
    with pytest.raises(UserError, match="rename the file"):
        own_names(["x_y.txt", "gs:x/y.txt"], ["y.txt", "gs_x_y.txt", "x_y.txt"])


PARTS = st.sampled_from(["a", "A", "b", "a_b", "c d", "..x", "é", '"<>|?*', "z" * 150])
PLACES = st.lists(st.lists(PARTS, min_size=1, max_size=4).map("/".join), unique=True, max_size=5)


@given(PLACES, st.sets(st.sampled_from(["a", "b", "a_b", "b_a"])))
def test_no_two_are_the_same(places: list[str], taken: set[str]) -> None:
    """Also on a file system that takes A for a; and none is too long for one, or no name."""
    try:
        names = own_names(places, taken)
    except UserError:
        return
    assert len({name.casefold() for name in [*names, *taken]}) == len(names) + len(taken)
    assert all(re.fullmatch(r"[^/\\:*?\"<>|]{1,120}", name) for name in names)
