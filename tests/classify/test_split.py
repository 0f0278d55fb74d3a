"""Splits: disjoint, of the right sizes, a function of the seed, and blind to labels' names."""

from __future__ import annotations

import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.classify.examples import Example
from chopjax.classify.split import SplitSettings, draw
from chopjax.classify.templates import Template
from chopjax.errors import UserError

THREE = Template("three", "{x}:", ("a", "b", "c"), (("a",), ("b",), ("c",)))


def examples(count: int, classes: int = 3) -> list[Example]:
    return [Example(str(number), number % classes) for number in range(count)]


@given(
    count=st.integers(12, 60),
    per_class=st.integers(1, 30),
    held_out=st.integers(0, 5),
    max_test=st.integers(1, 40),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_parts_are_disjoint_and_of_their_sizes(
    count: int, per_class: int, held_out: int, max_test: int, seed: int
) -> None:
    train, wanted = examples(count), SplitSettings(per_class, held_out, max_test)
    try:
        split = draw(train, examples(20), THREE, wanted, seed)
    except UserError:  # chance has held out nearly all of a class
        left = collections.Counter(example.label for example in train)
        assert min(left.values()) - held_out < 2
        return
    every = [*split.demonstrations, *split.train, *split.held_out]
    assert len(set(every)) == len(every)
    assert [train[n].label for n in split.demonstrations] == [0, 1, 2]
    counts = collections.Counter(train[n].label for n in split.train)
    assert max(counts.values()) <= per_class
    assert len(split.held_out) == held_out
    if max(counts.values()) < per_class:  # then nothing is left over
        assert len(every) == count
    assert len(set(split.test)) == len(split.test) == min(max_test, 20)
    assert split == draw(train, examples(20), THREE, wanted, seed)


def test_seeds_differ_and_the_test_file_does_not_matter_to_training() -> None:
    wanted = SplitSettings(3, 6, 5)
    one, other = (draw(examples(40), examples(20), THREE, wanted, seed) for seed in (0, 1))
    assert one.demonstrations != other.demonstrations
    assert one.test != other.test
    less = draw(examples(40), examples(7), THREE, wanted, 0)
    assert less.demonstrations == one.demonstrations
    assert (less.train, less.held_out) == (one.train, one.held_out)


def test_who_is_chosen_does_not_depend_on_the_order_of_the_classes() -> None:
    """Label order does not leak: with the classes renumbered, each still has its examples."""
    wanted = SplitSettings(3, 6, 5)
    plain = examples(40)
    turned = [Example(text, (label + 1) % 3) for text, label in plain]
    one, other = (draw(own, plain, THREE, wanted, 0) for own in (plain, turned))
    assert other.demonstrations == (one.demonstrations[2], *one.demonstrations[:2])
    assert set(other.train) == set(one.train)
    assert (other.held_out, other.test) == (one.held_out, one.test)


def test_a_class_without_examples() -> None:
    with pytest.raises(UserError, match=r"class c: 0 of the 30 training examples"):
        draw(examples(30, classes=2), examples(3), THREE, SplitSettings(5, 0, 5), 0)
    with pytest.raises(UserError, match="a smaller --held-out"):
        draw(examples(30), examples(3), THREE, SplitSettings(5, 28, 5), 0)
