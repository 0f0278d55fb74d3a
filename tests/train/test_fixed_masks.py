"""masks=fixed: what is zero stays zero, and nothing else becomes it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from train.runs import bits, lines, prepare, recipe, signal_after

from chopjax.checkpoint.export import export_model
from chopjax.checkpoint.load import load
from chopjax.checkpoint.peft_folder import export_adapter
from chopjax.errors import UserError
from chopjax.models.parameters import kernels
from chopjax.sparsify.pattern import Pattern
from chopjax.sparsify.sparsify import SparsifySettings, sparsify
from chopjax.train.fixed_masks import without_gradient, zeros_kept
from chopjax.train.loop import train

FIXED = ("masks=fixed", "optimizer.name=adamw", "optimizer.weight_decay=0.1")
ADAPTERS = ("masks=fixed", "adapter.rank=3", "adapter.targets=all")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As for other runs, the model with zeros."""
    folder = prepare(tmp_path_factory.mktemp("masks"))
    (folder / "model").rename(folder / "dense")
    settings = SparsifySettings("magnitude", Pattern(0.5, 4))
    sparsify(str(folder / "dense"), folder / "model", settings)
    return folder


def zeros(model: Path, keep: tuple[int, ...] | None = None) -> dict[str, np.ndarray]:
    """Path → bool, of the blocks' matrices."""
    loaded = load(str(model), keep=keep)
    flat = flatten_dict(loaded.params, sep="/")
    return {path: np.asarray(flat[path]) == 0 for path in kernels(loaded.config)}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all((one[path] == other[path]).all() for path in one)


@pytest.fixture(scope="module")
def healed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("healed")
    train(recipe(data, *FIXED, "chop.keep=0,2-3", "chop.after_steps=4"), workdir)
    return workdir


def test_zeros_are_the_same_after_training_and_a_chop(data: Path, healed: Path) -> None:
    before, after = zeros(data / "model", (0, 2, 3)), zeros(healed)
    assert all(mask.mean() == 0.5 for mask in before.values())
    assert same(before, after)
    assert lines(healed, "eval_loss")[12] < lines(healed, "eval_loss")[4]
    moved, parent = (
        flatten_dict(m.params, sep="/")
        for m in (load(str(healed)), load(str(data / "model"), keep=(0, 2, 3)))
    )
    for path, mask in before.items():
        stay = ~mask
        changed = np.asarray(moved[path])[stay] != np.asarray(parent[path])[stay]
        assert changed.mean() > 0.99, path


def test_without_it_zeros_are_filled(data: Path, tmp_path: Path) -> None:
    train(recipe(data, *FIXED[1:], "total_steps=2", "optimizer.warmup_steps=0"), tmp_path / "run")
    assert not any(mask.mean() > 0.1 for mask in zeros(tmp_path / "run").values())
    export_model(str(tmp_path / "run"), tmp_path / "out")
    assert "training since then filled some of them" in (tmp_path / "out/README.md").read_text()


def test_a_stopped_run_goes_on_to_the_same_bits(
    data: Path, healed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(data, *FIXED, "chop.keep=0,2-3", "chop.after_steps=4")
    with monkeypatch.context() as patch:
        signal_after(patch, 7, signal.SIGTERM)
        with pytest.raises(SystemExit):
            train(config, tmp_path / "run")
    train(config, tmp_path / "run")
    assert bits(tmp_path / "run") == bits(healed)


def test_the_export_says_that_zeros_were_kept(healed: Path, tmp_path: Path) -> None:
    export_model(str(healed), tmp_path / "out")
    assert same(zeros(healed), zeros(tmp_path / "out"))
    history = json.loads((tmp_path / "out" / "chopjax.json").read_text())["history"]
    assert [entry["step"] for entry in history] == ["sparsity", "chop", "training"]
    assert history[-1]["masks"] == "fixed"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "all weights, zeros kept" in card
    assert "filled" not in card


def test_adapters_add_nothing_to_zeros(data: Path, tmp_path: Path) -> None:
    """The merged model is the one that was trained: its loss is that of the last evaluation."""
    config = recipe(data, *ADAPTERS, "evaluation.every=12")
    config.optimizer.peak_learning_rate = 0.02
    summary = train(config, tmp_path / "run")
    assert "behind masks" in summary["flops"]
    assert summary["eval_loss"] < lines(tmp_path / "run", "eval_loss")[0] - 0.1
    export_model(str(tmp_path / "run"), tmp_path / "merged")
    before, after = zeros(data / "model"), zeros(tmp_path / "merged")
    assert same(before, after)
    once = ("total_steps=1", "optimizer.peak_learning_rate=1e-12", "optimizer.warmup_steps=0")
    config = recipe(data, *once, "evaluation.every=1")
    config.model = str(tmp_path / "merged")
    train(config, tmp_path / "again")
    assert lines(tmp_path / "again", "eval_loss")[0] == pytest.approx(
        summary["eval_loss"], abs=1e-5
    )
    with pytest.raises(UserError, match="which peft cannot say"):
        export_adapter(str(tmp_path / "run"), tmp_path / "adapter")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["adapter.rank=3", "adapter.base=nf4"], "adapter.base must be float"),
        (["adapter.rank=3", "adapter.dropout=0.1"], "adapter.dropout must be 0"),
        (["from_scratch=True"], "random weights have none"),
        (["masks=fix"], "is not one of none, fixed"),
    ],
)
def test_settings_that_contradict_each_other(
    data: Path, tmp_path: Path, changes: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        train(recipe(data, "masks=fixed", *changes), tmp_path / "run")


def test_a_model_without_zeros_is_refused(data: Path, tmp_path: Path) -> None:
    config = recipe(data, "masks=fixed")
    config.model = str(data / "dense")
    with pytest.raises(UserError, match="none of the weights of this model's matrices is zero"):
        train(config, tmp_path / "run")


def test_biases_and_norms_have_no_mask_and_no_weight_becomes_zero() -> None:
    old: Any = {
        "blocks": {
            "attention": {"query": jnp.array([0.0, 1.0, -2.0]), "query_bias": jnp.zeros(2)},
            "attention_norm": {"scale": jnp.array([0.0, 1.0])},
        },
        "embed": {"embedding": jnp.zeros(2)},
    }
    ones: Any = {
        "blocks": {
            "attention": {"query": jnp.array([3.0, 0.0, 5.0]), "query_bias": jnp.ones(2)},
            "attention_norm": {"scale": jnp.ones(2)},
        },
        "embed": {"embedding": jnp.ones(2)},
    }
    held = flatten_dict(without_gradient(old, ones), sep="/")
    assert held["blocks/attention/query"].tolist() == [0, 0, 5]
    kept = flatten_dict(zeros_kept(old, ones), sep="/")
    assert kept["blocks/attention/query"].tolist() == [0, 1, 5]
    for flat in (held, kept):
        assert all((leaf == 1).all() for path, leaf in flat.items() if not path.endswith("/query"))
