"""Commas and equals signs that belong to names."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chopjax.data.lists import text_names, weighted_folders
from chopjax.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def folders(here: Path, *names: str) -> None:
    for name in names:
        (here / name).mkdir(parents=True)


def test_one_folder_whatever_its_name(here: Path) -> None:
    folders(here, "lr=1e-3/tok", "x=1", "a=1,b=2", "p,q")
    for name in ("lr=1e-3/tok", "x=1", "a=1,b=2", "p,q", str(here / "lr=1e-3" / "tok"), "absent"):
        assert weighted_folders(name) == [(name, 1.0)]


def test_several_with_weights(here: Path) -> None:
    folders(here, "a", "b", "lr=1e-3/tok", "p,q")
    assert weighted_folders("a=0.5, b=0.25") == [("a", 0.5), ("b", 0.25)]
    assert weighted_folders("lr=1e-3/tok=2,a=1") == [("lr=1e-3/tok", 2.0), ("a", 1.0)]
    assert weighted_folders("p,q=2,a=1") == [("p,q", 2.0), ("a", 1.0)]
    assert weighted_folders("a=1") == [("a", 1.0)]


def test_two_readings_are_refused_and_slashes_tell_them_apart(here: Path) -> None:
    folders(here, "tok", "tok=3", "a", "b", "a=1,b")
    for text in ("tok=3", "a=1,b=2"):
        with pytest.raises(UserError, match=r"may be .* or .*slash"):
            weighted_folders(text)
    assert weighted_folders("tok=3/") == [("tok=3/", 1.0)]
    assert weighted_folders("tok/=3") == [("tok/", 3.0)]
    assert weighted_folders("a/=1,b=2") == [("a/", 1.0), ("b", 2.0)]


def test_what_is_not_there_is_left_to_whoever_opens_it(here: Path) -> None:
    folders(here, "a")
    assert weighted_folders("lr=1e-3/tok") == [("lr=1e-3/tok", 1.0)]
    assert weighted_folders("a=1,b=2") == [("a", 1.0), ("b", 2.0)]
    assert weighted_folders("a=1,b=x") == [("a", 1.0), ("b=x", 1.0)]


@given(st.text("ab=,/1. ", max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    assert weighted_folders(text)
    assert all(name.strip() == name for name in text_names(text))


def test_files_with_commas(here: Path) -> None:
    for name in ("a.txt", "b,c.txt", "d"):
        (here / name).touch()
    assert text_names(" a.txt, d ,") == ["a.txt", "d"]
    assert text_names("b,c.txt") == ["b,c.txt"]
    assert text_names("a.txt,b,c.txt,*.jsonl,hf:x/y,gs://b/c") == [
        "a.txt",
        "b,c.txt",
        "*.jsonl",
        "hf:x/y",
        "gs://b/c",
    ]
    assert text_names("absent,b,c.txt") == ["absent", "b", "c.txt"]  # and find_sources says so
    (here / "b").touch()
    assert text_names("b,c.txt") == ["b,c.txt"]  # there is no c.txt
    (here / "c.txt").touch()
    with pytest.raises(UserError, match=r"may be b and c\.txt or b,c\.txt.*write \?"):
        text_names("b,c.txt")
    assert text_names("b?c.txt") == ["b?c.txt"]
    assert text_names(",".join(["x"] * 3000)) == ["x"] * 3000
