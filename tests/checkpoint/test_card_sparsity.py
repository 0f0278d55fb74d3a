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
