"""What the card says of zeros, of records that say more or less."""

from __future__ import annotations

from typing import Any

import pytest

from chopjax.checkpoint.card_sparsity import facts, with_zeros

TRAINED = {"step": "training", "steps": 12}
DIMCHOP = TRAINED | {"dimchop": {"final": 0.4, "end": 8, "columns": "output"}}
ALL = "40 % of the output columns of each of the blocks' matrices"


@pytest.mark.parametrize(
    ("entry", "later", "said"),
    [
        (DIMCHOP, [], f"DimCHOP: {ALL} are zero"),
        (
            DIMCHOP,
            [TRAINED],
            f"DimCHOP: {ALL} are zero; training since then filled some of them",
        ),
        (DIMCHOP, [TRAINED | {"masks": "fixed"}], f"DimCHOP: {ALL} are zero"),
        (
            DIMCHOP | {"steps": 7},
            [],
            f"DimCHOP, after 7 of the 8 steps that lead to zeros in {ALL}",
        ),
        (DIMCHOP | {"dimchop": {"final": "half"}}, [], "DimCHOP"),
    ],
)
def test_columns_of_zeros(entry: dict[str, Any], later: list[dict[str, Any]], said: str) -> None:
    history = [TRAINED, entry, *later]
    assert with_zeros({"history": history}) == [entry]
    assert facts(entry, history) == [("sparsity", said)]


WHOLE = {"step": "chop", "kept_layers": [0, 1], "parent": {"num_layers": 2}}
CHOPPED = WHOLE | {"kept_layers": [1]}


@pytest.mark.parametrize(
    ("later", "added"),
    [
        ([WHOLE], ""),
        ([CHOPPED, CHOPPED], "; a chop since then took some of these weights"),
        (
            [{"step": "width"}, CHOPPED],
            "; a narrowing and a chop since then took some of these weights",
        ),
    ],
)
def test_counts_are_of_their_time(later: list[dict[str, Any]], added: str) -> None:
    entry = {"step": "sparsity", "method": "wanda", "pattern": "2:4", "zeros": 4, "weights": 8}
    said = "Wanda, 2:4: 4 of the 8 weights of the blocks' matrices became zero"
    assert facts(entry, [CHOPPED, entry, *later]) == [("sparsity", said + added)]


@pytest.mark.parametrize(
    ("settings", "by"),
    [
        ({"remove": 2}, ""),
        ({"repair": {"kind": "affine", "folded": ["down"]}}, "a repair"),
        ({"repair": {"kind": "scalar", "folded": ["down"]}}, ""),
        ({"repair": {"kind": "linear", "folded": []}}, ""),
        ({"repair": "anybody's"}, ""),
        ({"merged": {"3": {"3": 0.5, "4": 0.5}}}, "merging layers"),
    ],
)
@pytest.mark.parametrize("step", [{"step": "chop"}, {}])
def test_a_chop_that_computes_weights_fills_zeros(
    step: dict[str, Any], settings: dict[str, Any], by: str
) -> None:
    entry = {"step": "sparsity", "method": "wanda", "pattern": "2:4"}
    chop = step | {"strategy": "input", "settings": settings}
    filled = f"; {by} since then filled some of them" if by else ""
    assert facts(entry, [entry, chop]) == [("sparsity", f"Wanda, 2:4{filled}")]
    if by:
        said = f"Wanda, 2:4; {by} and training since then filled some of them"
        assert facts(entry, [entry, chop, TRAINED]) == [("sparsity", said)]
