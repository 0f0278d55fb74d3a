"""The recipes of configs/ that heal as Deeper Layers does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from chopjax.checkpoint.published import CONFIGS as PUBLISHED
from chopjax.models import parameters
from chopjax.models.adapter_settings import AdapterSettings, target_paths
from chopjax.models.families import translate
from chopjax.train.config_file import load_config
from chopjax.train.deeper_layers import healing_config
from chopjax.train.same_run import flat

CONFIGS = Path(__file__).parents[2] / "configs"
WHOLE_BLOCKS_AGAIN = {"compute.remat": "full", "compute.microbatches": 16}
# Recipe → model, its size in billions; layers, length, peak learning rate and rank of the paper's
# table; layers that go; what else is its own.
TABLE: dict[str, tuple[str, float, int, int, float, int, int, dict[str, Any]]] = {
    "llama2_7b": ("meta-llama/Llama-2-7b-hf", 6.74, 32, 2048, 3e-4, 2, 8, {}),
    "llama2_13b": (
        *("meta-llama/Llama-2-13b-hf", 13.02, 40, 4096, 3e-4, 64, 10),
        WHOLE_BLOCKS_AGAIN,
    ),
    "llama2_70b": (
        *("meta-llama/Llama-2-70b-hf", 68.98, 80, 4096, 3e-5, 8, 20),
        {"compute.remat": "full", "compute.microbatches": 2, "mesh.data": 1, "mesh.fsdp": -1},
    ),
    "mistral_7b": ("mistralai/Mistral-7B-v0.1", 7.24, 32, 2048, 3e-6, 4, 8, {}),
    "phi2": ("microsoft/phi-2", 2.78, 32, 2048, 2e-4, 64, 6, {}),
    "qwen_7b": ("Qwen/Qwen1.5-7B", 7.72, 32, 2048, 3e-4, 64, 5, {"compute.microbatches": 16}),
    "qwen_14b": ("Qwen/Qwen1.5-14B", 14.17, 40, 4096, 3e-4, 64, 6, WHOLE_BLOCKS_AGAIN),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_copy_in_any_folder_is_the_paper_s_but_for_what_it_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, size, layers, length, rate, rank, remove, own = TABLE[name]
    copy = shutil.copy(CONFIGS / f"deeper_layers_{name}.py", tmp_path / "mine.py")
    monkeypatch.chdir(tmp_path)
    paper = flat(healing_config(rank, rate, length).to_dict())
    assert flat(load_config(copy).to_dict()) == (
        paper | {"model": model, "chop.remove": str(remove)} | own
    )
    _, config = translate(PUBLISHED[model])
    assert config.num_layers == layers
    assert parameters.count(config) / 1e9 == pytest.approx(size, abs=0.005)


def test_the_figures_are_the_paper_s() -> None:
    config = healing_config(rank=8, peak_learning_rate=3e-5, length=4096)
    assert (config.total_steps, config.data.batch_size) == (5000, 16)
    assert config.total_steps * config.data.batch_size * 2048 == pytest.approx(164e6, rel=1e-2)
    adapter, optimizer = config.adapter, config.optimizer
    assert (adapter.rank, adapter.alpha, adapter.dropout) == (8, 8.0, 0.05)
    assert adapter.base == "nf4"
    assert (optimizer.peak_learning_rate, optimizer.warmup_steps) == (3e-5, 100)
    # Trainer's defaults.
    assert (optimizer.name, optimizer.b1, optimizer.b2) == ("adamw", 0.9, 0.999)
    assert (optimizer.weight_decay, optimizer.clip_norm, optimizer.final_fraction) == (0, 1, 0)


@pytest.mark.parametrize("name", TABLE)
def test_the_feed_forward_alone_has_adapters(name: str) -> None:
    config = load_config(CONFIGS / f"deeper_layers_{name}.py")
    _, model = translate(PUBLISHED[config.model])
    paths = target_paths(model, AdapterSettings(**config.adapter.to_dict()))
    matrices = {"up", "down"} if name == "phi2" else {"gate", "up", "down"}
    assert {path.rpartition("/")[2] for path in paths} == matrices
