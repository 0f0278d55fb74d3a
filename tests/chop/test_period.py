"""Cuts that keep a model's rhythm of local and global layers, and notes on those that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chopjax.checkpoint import structures
from chopjax.checkpoint.source import Files
from chopjax.checkpoint.structure import follow
from chopjax.chop.configurations import STRATEGIES
from chopjax.chop.period import check_whole, period_of, rhythm_notes, whole_periods
from chopjax.errors import UserError


def files(model_type: str, num_layers: int, **more: Any) -> Files:
    raw = {"model_type": model_type, "num_hidden_layers": num_layers} | more
    structure = structures.find(raw)
    assert structure is not None
    return Files(
        name="m",
        folder=Path("m"),
        raw_config=raw,
        structure=structure,
        num_layers=num_layers,
        tensors={},
        metadata={},
    )


GEMMA = files("gemma3_text", 26)


def test_whole_periods_of_five_local_layers_and_a_global_one() -> None:
    assert period_of(GEMMA) == 6
    assert whole_periods(GEMMA, "middle", "12") == (*range(6), *range(18, 26))
    assert whole_periods(GEMMA, "first", "6") == (*range(18), 24, 25)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("remove", [2, 4])
def test_every_strategy_keeps_every_place_of_its_kind(strategy: str, remove: int) -> None:
    model = files("gemma2", 13)
    keep = whole_periods(model, strategy, str(remove))
    assert len(keep) == 13 - remove
    assert [layer % 2 for layer in keep] == [place % 2 for place in range(len(keep))]
    check_whole(model, keep)
    assert rhythm_notes(model, keep, follow(model.structure, model.raw_config, 13, keep)) == []


def test_counts_between_periods_name_the_next_ones() -> None:
    with pytest.raises(
        UserError, match=r"8 layers are no whole .* of 6; --remove 6 or 12 would be"
    ):
        whole_periods(GEMMA, "middle", "8")
    with pytest.raises(UserError, match="--remove 6 would be"):
        whole_periods(GEMMA, "middle", "2")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (files("llama", 8), "all its layers are of one kind"),
        (files("deepseek_v3", 8), "its layers' kinds do not repeat"),
        (files("gemma3_text", 7), "its layers' kinds do not repeat"),
    ],
)
def test_no_period(model: Files, reason: str) -> None:
    with pytest.raises(UserError, match=f"has no period: {reason}"):
        period_of(model)


def test_a_list_of_layers_is_checked() -> None:
    check_whole(GEMMA, (*range(4), *range(10, 26)))
    with pytest.raises(UserError, match="layer 6 comes to a place of another kind"):
        check_whole(GEMMA, (*range(5), *range(6, 26)))


def test_what_is_said_of_a_broken_rhythm() -> None:
    keep = (0, 5, 7, 11, 25)
    chopped = follow(GEMMA.structure, GEMMA.raw_config, 26, keep)
    [note] = rhythm_notes(GEMMA, keep, chopped)
    assert "spells them out (layer_types), but llama.cpp" in note
    assert "--period whole removes whole periods of 6 layers" in note
    own = (0, 1, 2, 3, 4, 11)  # the pattern's
    assert not rhythm_notes(GEMMA, own, follow(GEMMA.structure, GEMMA.raw_config, 26, own))
