"""Keep lists: every one that METHODS.md states, and what each strategy promises for all sizes."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chopjax.chop import configurations as c
from chopjax.errors import UserError
from chopjax.keep import removed


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("input", [0, *range(13, 24)]),
        ("output", [*range(11), 23]),
        ("middle", [*range(6), *range(18, 24)]),
        ("both", [0, *range(7, 17), 23]),
        ("max-gap", [0, 2, 4, 6, 8, 10, 13, 15, 17, 19, 21, 23]),
        ("deepest", [*range(11), 23]),
        ("first", [*range(12)]),
    ],
)
def test_twelve_of_24(strategy, expected):
    assert list(c.choose(strategy, 24, 12)) == expected


def test_published_keep_lists():
    assert c.input_side(32, 16) == (0, *range(17, 32))  # Llama-2-7B at half, Just CHOP
    for remove in range(1, 31):  # Deeper Layers: L-1-n..L-2 go
        assert removed(c.deepest(32, remove), 32) == tuple(range(31 - remove, 31))
    for k in (1, 2, 12, 24):  # Why Lift: GPT-2 XL's 48 layers
        assert c.first(48, 48 - k) == tuple(range(k))


sizes = st.integers(3, 120).flatmap(
    lambda layers: st.tuples(st.just(layers), st.integers(1, layers - 2))
)
FIVE = ("input", "output", "middle", "both", "max-gap")


@given(sizes, st.sampled_from(sorted(c.STRATEGIES)))
def test_right_count_ascending_and_in_range(size, strategy):
    layers, remove = size
    keep = c.STRATEGIES[strategy](layers, remove)
    assert len(keep) == layers - remove
    assert list(keep) == sorted(set(keep))
    assert keep[0] >= 0
    assert keep[-1] < layers
    assert all(type(layer) is int for layer in keep)


@given(sizes, st.sampled_from(FIVE))
def test_just_chop_keeps_both_ends(size, strategy):
    layers, remove = size
    keep = c.STRATEGIES[strategy](layers, remove)
    assert keep[0] == 0
    assert keep[-1] == layers - 1


@given(sizes)
def test_removed_blocks_lie_where_they_should(size):
    layers, remove = size
    gone = removed(c.middle(layers, remove), layers)
    assert gone == tuple(range(gone[0], gone[0] + remove))
    before, after = gone[0], layers - 1 - gone[-1]
    assert after - before in (0, 1)
    gone = removed(c.both_sides(layers, remove), layers)
    near_input = sum(1 for layer in gone if layer <= remove)
    if remove <= (layers - 2) // 2:  # the two blocks cannot touch
        assert near_input - (remove - near_input) in (0, 1)
    gaps = [b - a for a, b in itertools.pairwise(c.max_gap(layers, remove))]
    assert max(gaps) - min(gaps) <= 1


@given(sizes)
def test_max_gap_is_the_formula_in_exact_arithmetic(size):
    layers, remove = size
    kept = layers - remove
    expected = [round(Fraction(i * (layers - 1), kept - 1)) for i in range(kept)]
    assert list(c.max_gap(layers, remove)) == expected


@pytest.mark.parametrize("strategy", c.STRATEGIES)
def test_the_largest_possible_is_named(strategy):
    largest = 10 if strategy in FIVE else 11
    assert len(c.choose(strategy, 12, largest)) == 12 - largest
    for wrong in (0, -1, largest + 1, 12, 100):
        with pytest.raises(UserError, match=rf"1 to {largest} of 12|from 1 to 11 of the 12"):
            c.STRATEGIES[strategy](12, wrong)
    with pytest.raises(UserError, match="cannot remove any"):
        c.STRATEGIES[strategy](1, 1)


def test_unknown_strategy_lists_the_known():
    with pytest.raises(UserError, match=r"inptu.*input, output, middle"):
        c.choose("inptu", 24, 12)


@pytest.mark.parametrize(
    ("text", "layers", "count"),
    [
        ("12", 24, 12),
        (" 12 ", 24, 12),
        (12, 24, 12),
        ("0.5", 24, 12),
        (0.5, 24, 12),
        ("50%", 24, 12),
        ("50 %", 24, 12),
        ("37.5%", 32, 12),
        ("0.5", 25, 12),  # halves down
        ("0.5", 27, 13),
        ("0.29", 100, 29),  # exact: 0.29 is not a binary fraction
        ("1/3", 24, 8),
    ],
)
def test_resolve_remove(text, layers, count):
    assert c.resolve_remove(text, layers) == count


@pytest.mark.parametrize(
    "text", ["0", "24", "-3", "0.0", "1.0", "100%", "0.01", "0.99", "12.0", "-0.5", "150%"]
)
def test_none_or_all_layers_cannot_go(text):
    with pytest.raises(UserError, match=r"--remove .*(from 1 to 23 of the 24|between 0 and 1)"):
        c.resolve_remove(text, 24)


@pytest.mark.parametrize(
    "text",
    [
        *("", "half", "nan", "inf", "-inf", "1/0", "1/0%", "%", "12 layers", "0x1", "½"),
        *("1e999999999", "1e-99999", "1e9999%", "9" * 10_000),
    ],
)
def test_remove_that_is_no_number(text):
    with pytest.raises(UserError, match="is not a number of layers"):
        c.resolve_remove(text, 24)


@given(st.integers(2, 100), st.fractions(0, 1, max_denominator=1000))
def test_fractions_go_to_the_nearest_layer(layers, fraction):
    exact = fraction * layers
    try:
        count = c.resolve_remove(str(fraction) if fraction.denominator > 1 else "0.0", layers)
    except UserError:
        assert exact <= Fraction(1, 2) or exact > layers - Fraction(1, 2)
        return
    assert -Fraction(1, 2) <= count - exact < Fraction(1, 2)
