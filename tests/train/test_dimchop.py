"""DimCHOP: scores, masks and losses beside plain torch; runs killed, chopped, exported."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import checkpoints
import families as tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given
from hypothesis import strategies as st
from train import dimchop_peer
from train.runs import bits, lines, prepare, recipe, signal_after

from chopjax.checkpoint.export import export_model
from chopjax.checkpoint.open import open_checkpoint
from chopjax.errors import UserError
from chopjax.models import decoder, families, mesh, parameters
from chopjax.train import dimchop, spike_guard, step
from chopjax.train.dimchop_settings import DimChopSettings
from chopjax.train.loop import train
from chopjax.train.optimizer import make_optimizer
from chopjax.train.same_run import reshaped
from chopjax.train.settings import (
    ComputeSettings,
    DataSettings,
    OptimizerSettings,
    Settings,
    read,
)
from chopjax.train.task import task_of

B, T, V, STEPS = 4, 12, 60, 10
SIZES: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 2},
    "gpt2": {"n_layer": 2},
}


class Steps:
    """The training step of a model in memory, without a run."""

    def __init__(self, raw: dict[str, Any], config: Any, params: Any, **changes: Any) -> None:
        rate, (b1, b2) = dimchop_peer.RATE, dimchop_peer.BETAS
        adamw = OptimizerSettings("adamw", rate, 0, 1.0, b1, b2, dimchop_peer.DECAY, 0.0)
        settings = Settings(
            scratch=raw,
            data=DataSettings(batch_size=B, sequence_length=T),
            **{"optimizer": adamw} | changes,
        )
        self.mesh = mesh.make_mesh(devices=jax.devices()[:1])
        with jax.set_mesh(self.mesh):
            rule = make_optimizer(settings.optimizer, STEPS)
            task = task_of(config, settings, self.mesh)
            abstract = step.abstract_state(task.trainable, rule, settings, self.mesh)
            self.state = step.begin(jax.tree.map(jnp.asarray, params), rule, settings, abstract)
            self._step = step.make_train_step(
                task.objective, rule, settings, abstract, {}, self.mesh, task.matrices
            )

    def __call__(self, tokens: np.ndarray) -> dict[str, float]:
        places = np.tile(np.arange(T, dtype=np.int32), (B, 1))
        batch = {
            "tokens": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "segments": np.ones_like(places),
            "positions": places,
            "weights": np.ones_like(places, np.float32),
        }
        with jax.set_mesh(self.mesh):
            self.state, metrics = self._step(
                self.state, {}, jax.device_put(batch, mesh.batch_sharding(self.mesh))
            )
        return {name: float(value) for name, value in metrics.items()}


def batches() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, V, (B, T + 1), dtype=np.int32) for _ in range(STEPS)]


def in_files(tree: Any, config: Any) -> dict[str, np.ndarray]:
    """What is like the parameters of the blocks' matrices, as the family's tensors: [out, in]."""
    flat, sizes = flatten_dict(tree, sep="/"), parameters.sizes(config)
    family = families.FAMILIES[config.family]
    found = {}
    for binding in families.table.bind(family, config, families.table.usual_naming(family)):
        paths = binding.row.targets
        if paths[0] in parameters.kernels(config):
            arrays = [np.asarray(flat[path][binding.place]) for path in paths]
            tensor = binding.row.to_tensor(arrays, sizes)
            name = binding.source.partition(f"{binding.layer}.")[2].removesuffix(".weight")
            conv = config.family == "gpt2"
            found[f"{binding.layer}.{name}"] = tensor.T if conv else tensor
    return found


@pytest.mark.parametrize(
    ("family", "columns"), [("llama", "input"), ("gpt2", "input"), ("gpt2", "output")]
)
def test_scores_masks_and_losses_are_those_of_plain_torch(family: str, columns: Any) -> None:
    """GPT-2's queries, keys and values are one matrix."""
    settings = DimChopSettings(0.4, 1, 8, 3, 0.6, 0.7, columns)
    model: Any = checkpoints.random_model(family, vocab_size=V, **SIZES[family])
    raw = json.loads(model.config.to_json_string(use_diff=False))
    config, params = checkpoints.in_memory(model, raw)
    steps = Steps(raw, config, jax.tree.map(np.array, params), dimchop=settings)
    theirs = dimchop_peer.train(model, [torch.tensor(b).long() for b in batches()], settings)
    for number, tokens in enumerate(batches()):
        metrics = steps(tokens)
        assert metrics["loss"] == pytest.approx(theirs["losses"][number], abs=1e-5)
        zero = theirs["zero"][number]
        ours = in_files(dimchop.kernels_of(steps.state["params"]), config)
        assert ours.keys() == zero.keys()
        for name, weight in ours.items():
            mine = (weight == 0).all(0 if columns == "input" else 1)
            assert (mine == zero[name].numpy()).all(), (number, name)
        share = np.concatenate([each.numpy() for each in zero.values()]).mean()
        assert metrics["zero_columns"] == pytest.approx(share, abs=0.02)
        assert bool(share) == (number + 1 in (3, 6, 8, 9, 10))
    importance = steps.state["importance"]
    scores = in_files(
        jax.tree.map(jnp.multiply, importance["mean"], importance["uncertainty"]), config
    )
    for name, want in theirs["scores"].items():
        np.testing.assert_allclose(scores[name], want, rtol=1e-5, atol=1e-5 * want.max().item())


@given(st.floats(0.01, 0.99), st.integers(0, 10**6), st.integers(1, 10**6), st.integers(1, 10**5))
def test_the_share_grows_from_nothing_to_what_was_asked(
    final: float, start: int, length: int, columns: int
) -> None:
    settings = DimChopSettings(final, start, start + length)
    at = np.unique(np.linspace(max(start - 9, 0), start + length + 9, 40).astype(int))
    shares = np.asarray(dimchop.share(settings, at))
    assert (np.diff(shares) >= 0).all()
    assert (np.diff(np.round(shares * columns)) >= 0).all()
    assert (shares[at <= start] == 0).all()
    assert (shares[at >= settings.end] == np.float32(final)).all()
    want = final - final * np.clip(1 - (at - start) / length, 0, 1) ** 3
    np.testing.assert_allclose(shares, want, atol=1e-5)


@pytest.mark.parametrize("family", sorted(tiny.SIZES))
def test_every_kernel_is_in_one_matrix(family: str) -> None:
    _, config = families.translate({"model_type": family} | tiny.SIZES[family])
    matrices = dimchop.matrices_of(config)
    paths = [path for matrix in matrices for path in matrix]
    assert sorted(paths) == sorted(parameters.kernels(config))


def test_experts_are_matrices_of_their_own_and_routers_none() -> None:
    """Each has its own columns of zeros; equal scores go in their order."""
    _, config = families.translate({"model_type": "olmoe"} | tiny.SIZES["olmoe"])
    shapes = parameters.shapes(config)
    random = np.random.default_rng(0)
    flat = {path: random.random(shape) + 1 for path, shape in shapes.items()}
    params = unflatten_dict({path: jnp.asarray(w) for path, w in flat.items()}, sep="/")
    scores = dimchop.no_scores(params)
    scores["mean"] = scores["uncertainty"] = dimchop.kernels_of(params)
    settings = DimChopSettings(0.5, 0, 4, 2)
    new, share = dimchop.masked(params, scores, dimchop.matrices_of(config), settings, 7)
    assert share == 0.5
    new = flatten_dict(new, sep="/")
    assert (new["blocks/mlp/router"] == flat["blocks/mlp/router"]).all()
    up = flat["blocks/mlp/up"]
    worst = np.argsort((up**2).sum(-1))[..., : up.shape[2] // 2]
    zero = (np.asarray(new["blocks/mlp/up"]) == 0).all(-1)
    assert (np.take_along_axis(zero, worst, -1)).all()
    assert zero.sum() == zero.size // 2


def test_an_update_that_is_left_out_has_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the window nor its number of steps; the zeros that are due stay zeros."""
    monkeypatch.setattr(spike_guard, "DECAY", 0.5)  # the guard is awake after two steps
    _, config = families.translate({"model_type": "llama"} | tiny.SIZES["llama"])
    steps = Steps(
        tiny.SIZES["llama"],
        config,
        decoder.init(config, jax.random.key(0)),
        dimchop=DimChopSettings(0.5, 0, 2, 2),
        optimizer=OptimizerSettings("adamw", spike_factor=3.0),
        compute=ComputeSettings(microbatches=2),
    )
    first, second, spike, _ = batches()[:4]
    steps(first)
    assert steps(second)["zero_columns"] == pytest.approx(0.5, abs=0.01)
    before = jax.tree.map(np.array, steps.state)
    steps.state["guard"]["mean_loss"] = jnp.float32(0.1)
    metrics = steps(spike)
    assert metrics["skipped"] == 1
    assert metrics["zero_columns"] == pytest.approx(0.5, abs=0.01)
    for name in ("params", "optimizer", "importance"):
        jax.tree.map(np.testing.assert_array_equal, before[name], steps.state[name])


DIMCHOP = (
    "dimchop.final=0.4",
    "dimchop.end=8",
    "dimchop.interval=2",
    "chop.keep=0,2-3",
    "chop.after_steps=4",
    "checkpoints.every=4",
    "evaluation.every=4",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("dimchop"))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("trained")
    train(recipe(data, *DIMCHOP), workdir)
    return workdir


def test_a_stopped_run_goes_on_to_the_same_bits(
    data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within a window, behind the chop."""
    with monkeypatch.context() as patch:
        signal_after(patch, 7, signal.SIGTERM)
        with pytest.raises(SystemExit):
            train(recipe(data, *DIMCHOP), tmp_path / "run")
    train(recipe(data, *DIMCHOP), tmp_path / "run")
    assert bits(tmp_path / "run") == bits(trained)
    assert lines(tmp_path / "run", "zero_columns") == lines(trained, "zero_columns")


def test_the_export_has_the_zeros_and_says_so(trained: Path, tmp_path: Path) -> None:
    shares = lines(trained, "zero_columns")
    assert [step for step, share in shares.items() if share] == [2, 4, 6, 8, 9, 10, 11, 12]
    assert shares[2] < shares[4] < shares[6] < shares[8] == shares[12]
    export_model(str(trained), tmp_path / "out")
    checkpoint = open_checkpoint(str(tmp_path / "out"))
    assert checkpoint.config.num_layers == 3
    for name in checkpoint.tensors:
        weight = checkpoint.array(name)
        is_matrix = "proj" in name
        want = round(0.4 * weight.shape[1]) if is_matrix else 0
        assert (weight == 0).sum() == want * len(weight), name
        assert not is_matrix or (weight == 0).all(0).sum() == want, name
    entry = json.loads((tmp_path / "out" / "chopjax.json").read_text())["history"][-1]
    assert entry["dimchop"]["final"] == 0.4
    card = (tmp_path / "out" / "README.md").read_text()
    assert "DimCHOP: 40 % of the input columns of each of the blocks' matrices are zero" in card
    assert "weight-pruning" in card
    assert "nothing is known to run them faster" in card


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["dimchop.final=1.0"], "final is 1.0: above 0 and below 1"),
        (["dimchop.final=0.0"], "final is 0.0: above 0 and below 1"),
        (["dimchop.start=8"], "start is 8 and end 8: 0 <= start < end"),
        (["dimchop.end=13"], "start is 0 and end 13: .* <= total_steps"),
        (["dimchop.interval=0"], "interval is 0: at least 1"),
        (["dimchop.interval=9"], "interval is 9: at least 1, and at most end"),
        (["dimchop.beta2=1.0"], "beta1 and beta2 lie in"),
        (["dimchop.columns=rows"], "'rows' is not one of input, output"),
        (["adapter.rank=2"], "adapters do not train the matrices"),
        (["adapter.rank=2", "adapter.base=nf4"], "adapters do not train the matrices"),
        (["masks=fixed"], "masks must be none; fixed keeps"),
        (["evaluation.every=3"], "evaluation.every is 3: no multiple of dimchop.interval 2"),
        (["checkpoints.every=5"], "checkpoints.every is 5: no multiple"),
        (["chop.after_steps=5"], "chop.after_steps is 5: no multiple"),
    ],
)
def test_settings_that_contradict_each_other(changes: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(recipe(Path("folder"), *DIMCHOP, *changes))


def test_a_run_with_scores_is_not_gone_on_with_without_them() -> None:
    """Not even by --force; another share is a matter of taste."""
    assert reshaped(["dimchop.final: 0.0 -> 0.5"])
    assert reshaped(["seed: 0 -> 1", "dimchop.final: 0.5 -> 0.0"])
    assert not reshaped(["dimchop.final: 0.5 -> 0.6", "dimchop.interval: 10 -> 5"])
