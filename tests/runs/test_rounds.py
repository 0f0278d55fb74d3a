"""What goes when, and where it lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from chopjax.errors import UserError
from chopjax.runs.rounds import rounds_of
from chopjax.runs.settings import Model, PipelineSettings, RemovalSettings

WORK = Path("work")


def settings(**removal: str) -> PipelineSettings:
    return PipelineSettings(model="parent", chop=RemovalSettings(**removal))  # type: ignore[arg-type]


def test_one_round_chops_the_parent_in_the_folder_itself() -> None:
    (one,) = rounds_of(settings(strategy="input", remove="2"), WORK, 4)
    assert (one.model, one.after, one.suffix, one.folder) == (Model("parent"), "", "", WORK)
    assert (one.remove, one.keep) == (2, (0, 3))
    assert one.steps == PipelineSettings().heal.total_steps
    assert one.healed == WORK / "healed"


def test_each_round_chops_what_the_round_before_healed() -> None:
    one, two = rounds_of(settings(keep="0,4-5", schedule="2x7"), WORK, 6)
    assert (one.suffix, one.folder, one.steps) == ("-1", WORK / "rounds" / "1", 7)
    assert (two.model, two.after, two.folder) == (Model(str(one.healed)), "export-1", WORK)
    assert one.keep is not None
    assert two.keep is not None
    left = [one.keep[place] for place in two.keep]
    assert left == [0, 4, 5]


def test_where_a_measure_decides_only_the_counts_are_known() -> None:
    rounds = rounds_of(settings(strategy="magnitude", remove="3", schedule="2x7"), WORK, 6)
    assert [(each.remove, each.keep) for each in rounds] == [(2, None), (1, None)]
    with pytest.raises(UserError, match="7"):
        rounds_of(settings(strategy="magnitude", remove="7"), WORK, 6)
