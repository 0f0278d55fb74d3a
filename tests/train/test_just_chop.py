"""The recipes of configs/ that begin with Just CHOP's figures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from chopjax.train.config_file import load_config
from chopjax.train.just_chop import llama2_config
from chopjax.train.settings import flat

CONFIGS = Path(__file__).parents[2] / "configs"
LARGE = {"chop.strategy": "input", "chop.remove": "0.5", "compute.loss_chunk": 4096}


@pytest.mark.parametrize(
    ("size", "own"),
    [
        ("7b", {"chop.keep": "0,17-31"}),
        ("13b", LARGE),
        (
            "70b",
            LARGE
            | {
                "optimizer.peak_learning_rate": 1.5e-4,
                "compute.remat": "full",
                "compute.microbatches": 2,
            },
        ),
    ],
)
def test_a_copy_in_any_folder_is_the_paper_s_but_for_what_it_says(
    size: str, own: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copy(CONFIGS / f"just_chop_llama2_{size}.py", tmp_path / "mine.py")
    monkeypatch.chdir(tmp_path)
    paper = flat(llama2_config().to_dict())
    assert flat(load_config(copy).to_dict()) == (
        paper | own | {"model": f"meta-llama/Llama-2-{size}-hf"}
    )


def test_the_figures_are_the_paper_s() -> None:
    config = llama2_config()
    batch = config.data.batch_size * config.data.sequence_length
    assert batch == 2**22  # "4M tokens"
    healing = config.total_steps - config.chop.after_steps
    assert healing * batch == pytest.approx(160e9, rel=1e-4)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.b1, optimizer.b2) == ("adamw", 0.9, 0.95)
    assert (optimizer.weight_decay, optimizer.peak_learning_rate) == (0.1, 3e-4)
    assert (optimizer.warmup_steps, optimizer.final_fraction) == (2000, 0.1)
