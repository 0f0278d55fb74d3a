"""The recipes of configs/ that begin with Just CHOP's figures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from chopjax.models import parameters
from chopjax.models.families import translate
from chopjax.train.config_file import load_config
from chopjax.train.just_chop import SPARSE_CORE_COLLECTIVES, llama2_config, palm_shape
from chopjax.train.same_run import flat
from chopjax.train.settings import read

CONFIGS = Path(__file__).parents[2] / "configs"
LARGE = {"chop.strategy": "input", "chop.remove": "0.5"}
PARTS, PARTS_LATER = "compute.microbatches", "compute.after_chop.microbatches"


@pytest.mark.parametrize(
    ("size", "own"),
    [
        ("7b", {"chop.keep": "0,17-31", PARTS_LATER: 2}),
        ("13b", LARGE | {PARTS: 2, PARTS_LATER: 1}),
        (
            "7b_h100",
            {
                "chop.keep": "0,17-31",
                "mesh.data": 1,
                "compute.microbatches": 32,
                "compute.loss_chunk": 4096,
            },
        ),
        (
            "13b_h100",
            LARGE | {"mesh.data": 1, "compute.microbatches": 128, "compute.loss_chunk": 4096},
        ),
        (
            "70b",
            LARGE
            | {
                "optimizer.peak_learning_rate": 1.5e-4,
                "compute.remat": "full",
                PARTS: 2,
                "compute.after_chop.remat": "dots",
                PARTS_LATER: 4,
            },
        ),
        (
            "70b_sparse_cores",
            LARGE
            | {
                "optimizer.peak_learning_rate": 1.5e-4,
                PARTS: 16,
                PARTS_LATER: 4,
                "compute.compiler_options": SPARSE_CORE_COLLECTIVES,
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
        paper | own | {"model": f"meta-llama/Llama-2-{size.split('_')[0]}-hf"}
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


@pytest.mark.parametrize(
    ("width", "layers", "size"),
    [(1024, 24, 300e6), (1024, 12, 180e6), (2048, 24, 1.1e9), (2048, 12, 610e6)],
)
def test_the_paper_s_own_decoders_have_its_sizes(width: int, layers: int, size: float) -> None:
    _, config = translate(palm_shape(width))
    assert parameters.count(config.keep(range(layers))) == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize(("size", "rate"), [("300m", 3e-4), ("1b", 2e-4)])
def test_the_paper_s_own_decoders_are_trained_chopped_and_healed(size: str, rate: float) -> None:
    parent = load_config(CONFIGS / f"just_chop_{size}_parent.py")
    half = load_config(CONFIGS / f"just_chop_{size}.py")
    assert translate(parent.scratch.to_dict())[1].num_layers == 24
    assert half.model == f"runs/{size}-parent"
    assert (half.total_steps - 500) * half.data.batch_size * half.data.sequence_length == (
        pytest.approx(20e9, rel=1e-4)
    )
    for config in (parent, half):
        optimizer = config.optimizer
        assert (optimizer.name, optimizer.b1, optimizer.b2) == ("lion", 0.9, 0.95)
        assert (optimizer.peak_learning_rate, optimizer.weight_decay) == (rate, 1e-4)
        assert config.data.batch_size * config.data.sequence_length == 2**21  # "2M tokens"


def test_dimchop_differs_from_the_chop_in_what_goes_alone() -> None:
    layers, columns = (
        load_config(CONFIGS / f"{name}_300m.py", ["data.train=C4"])
        for name in ("just_chop", "dimchop")
    )
    one, other = flat(layers.to_dict()), flat(columns.to_dict())
    differs = {name.split(".")[0] for name in one if one[name] != other[name]}
    assert differs == {"chop", "dimchop"}
    asked = read(columns).dimchop  # nothing in it contradicts itself
    assert (asked.final, asked.start) == (0.5, layers.chop.after_steps)
