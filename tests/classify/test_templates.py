"""Templates: those that come along, a file of the user's, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path

import pytest

from chopjax.classify.templates import names, read_template
from chopjax.errors import UserError


def test_the_papers_templates() -> None:
    assert names() == ["sst2", "agnews", "trec", "emo"]
    sst2, trec = read_template("sst2"), read_template("trec")
    assert sst2.prompt(["dull", "fine"], "what?") == (
        "Review: dull\nSentiment: Negative\nReview: fine\nSentiment: Positive\n"
        "Review: what?\nSentiment:"
    )
    assert trec.words == (
        "Abbreviation", "Entity", "Description", "Person", "Location", "Number",
    )  # fmt: skip
    assert [trec.class_of(value) for value in ("HUM", 5, "loc", "Number")] == [3, 5, 4, 5]
    assert [sst2.class_of(value) for value in (2, True, None, 1.0, "good")] == [None] * 5


def test_an_example_may_spell_the_place_itself() -> None:
    sst2 = read_template("sst2")
    assert sst2.query("a {x} b") == "Review: a {x} b\nSentiment:"


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text('text: "{x} is"\nclasses:\n  good: [5, P]\n  bad:\n')
    mine = read_template(str(path))
    assert (mine.name, mine.words) == ("mine", ("good", "bad"))
    assert [mine.class_of(value) for value in (5, "p", "Good", 1, "bad", 0)] == [
        0,
        0,
        0,
        1,
        1,
        None,
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text: 'no place'\nclasses: {a: [0], b: [1]}", r"must have \{x\} once"),
        ("text: 'it is {x}'\nclasses: {a: [0], b: [1]}", "end in what the label word follows"),
        ("text: '{x}:'\nclasses: {a: [0]}", "two label words or more"),
        ("text: '{x}:'\nclasses: {yes: [0], b: [1]}", "True is no label word; write it in quotes"),
        ("text: '{x}:'\nclasses: {a: [0], b: [0]}", "0: more than one class is called that"),
        ("text: '{x}:'\nclasses: {a: [0], b: [1.5]}", "b: a list of texts and whole numbers"),
        (
            "text: '{x}:'\nclases: {a: [0], b: [1]}",
            "has text and classes, no 'clases'; did you mean classes",
        ),
        ("- a\n- b", "a template has `text` and `classes`"),
        ("{", "not YAML"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        read_template(str(path))


def test_a_name_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'agnew' is none of sst2, .*; did you mean agnews"):
        read_template("agnew")
    with pytest.raises(UserError, match="No such file"):
        read_template(str(tmp_path / "absent.yaml"))
