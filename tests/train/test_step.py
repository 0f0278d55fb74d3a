"""The training step: the same losses on every mesh; microbatches; the spike guard."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import structure

from chopjax.models import decoder, families, mesh
from chopjax.models.compute import Compute
from chopjax.models.head import head_of, logits
from chopjax.train import objectives, optimizer, spike_guard, step
from chopjax.train.settings import (
    ComputeSettings,
    DataSettings,
    OptimizerSettings,
    Settings,
)


@pytest.fixture(scope="module")
def runs() -> dict:
    """What on_eight_devices.py found."""
    script = Path(__file__).with_name("on_eight_devices.py")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("name", "one"),
    [(name, "one device") for name in ("data", "fsdp", "all", "kv heads whole")]
    + [("teacher and DimCHOP", "teacher and DimCHOP, one device")],
)
def test_the_same_curve_on_every_mesh(runs, name, one):
    """With a teacher each term of the loss, too; with DimCHOP after each choice of columns."""
    np.testing.assert_allclose(runs[name]["curve"], runs[one]["curve"], rtol=2e-4)
    np.testing.assert_allclose(runs[name]["evaluation"], runs[one]["evaluation"], rtol=2e-4)


def test_a_vocabulary_that_does_not_divide(runs):
    want = runs["vocabulary whole, one device"]["curve"]
    np.testing.assert_allclose(runs["vocabulary whole"]["curve"], want, rtol=2e-4)


def test_kernels_can_be_gathered_once_a_step(runs):
    """As "all" does, whose curve is that of one device: over no axis but tensor's."""
    assert runs["all"]["gate shard"] == [2, 16, 24]  # fsdp and tensor
    assert runs["all"]["gate, gathered"] == [2, 32, 24, "bfloat16"]
    assert runs["all"]["norm, gathered"] == "float32"


def test_experts_on_a_mesh(runs):
    """The curve of one device; each device sorts the tokens of its rows, and has its part of every
    expert."""
    one, mesh = runs["experts, one device"], runs["experts"]
    np.testing.assert_allclose(mesh["curve"], one["curve"], rtol=2e-4)
    np.testing.assert_allclose(mesh["evaluation"], one["evaluation"], rtol=2e-4)
    rows = 16 * 12 * 2  # tokens of a batch, each to two experts
    assert one["longest sort"] == rows
    assert mesh["longest sort"] == rows / 4  # over data 2 x fsdp 2
    assert one["gate shard"] == [2, 6, 32, 48]
    assert mesh["gate shard"] == [2, 6, 16, 24]  # fsdp and tensor


def test_state_is_born_sharded(runs):
    assert all(run["born sharded"] for run in runs.values())
    assert runs["fsdp"]["query shard"] == [2, 4, 4, 8]
    assert runs["all"]["query shard"] == [2, 16, 2, 8]


def test_no_program_holds_all_logits(runs):
    assert not any(run["whole logits"] for run in runs.values())


def test_a_vocabulary_over_tensor_is_not_gathered(runs):
    """Neither table nor head nor logits, whose axis is split over `tensor`, are made whole."""
    assert not any(run["vocabulary gathered"] for run in runs.values())


def test_no_device_gathers_the_activations_of_the_whole_batch(runs):
    assert not any(run["whole batch gathered"] for run in runs.values())


RAW = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
CONFIG = families.translate(RAW)[1]
B, T = 4, 8


def make(raw=RAW, **changes):
    config = families.translate(raw)[1]
    settings = Settings(
        scratch=raw,
        data=DataSettings(batch_size=B, sequence_length=T),
        optimizer=changes.get("optimizer", OptimizerSettings(name="adamw")),
        compute=changes.get("compute", ComputeSettings()),
    )
    made = mesh.make_mesh(devices=jax.devices()[:1])
    rule = optimizer.make_optimizer(settings.optimizer, 10)
    params = step.abstract_params(config, settings.compute.param_dtype, made)
    abstract = step.abstract_state(params, rule, settings, made)
    state = step.begin_from_scratch(config, rule, settings, abstract)
    objective = objectives.next_token(config, settings)
    train_step = step.make_train_step(objective, rule, settings, abstract, {}, made)
    return made, state, lambda state, batch: train_step(state, {}, batch)


def batch_of(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    tokens = random.integers(0, 50, (B, T + 1)).astype(np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segments": np.ones((B, T), np.int32),
        "positions": np.tile(np.arange(T, dtype=np.int32), (B, 1)),
        "weights": (random.random((B, T)) < 0.7).astype(np.float32),
    }


def test_microbatches_are_one_batch():
    """Rows with few tokens count by their tokens and not by their row."""
    whole = make()
    parts = make(compute=ComputeSettings(microbatches=4))
    batch = batch_of(0)
    batch["weights"][0] = 0
    results = []
    for made, state, train_step in (whole, parts):
        state, metrics = train_step(state, jax.device_put(batch, mesh.batch_sharding(made)))
        results.append((state["params"], metrics))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_the_spike_guard_leaves_updates_out_and_counts_them(monkeypatch):
    monkeypatch.setattr(spike_guard, "DECAY", 0.5)  # the guard is awake after two steps
    made, state, train_step = make(optimizer=OptimizerSettings(name="lion", spike_factor=3.0))
    good = jax.device_put(batch_of(0), mesh.batch_sharding(made))
    for _ in range(2):
        state, metrics = train_step(state, good)
    assert metrics["skipped"] == 0
    before = jax.tree.map(np.array, state)
    poisoned = jax.tree.map(lambda x: x, state)
    poisoned["guard"] = poisoned["guard"] | {"mean_loss": jnp.float32(0.1)}
    state, metrics = train_step(poisoned, good)
    assert metrics["skipped"] == 1
    assert state["step"] == 3
    same = jax.tree.map(np.array_equal, before["params"], state["params"])
    assert all(jax.tree.leaves(same))
    same = jax.tree.map(np.array_equal, before["optimizer"], state["optimizer"])
    assert all(jax.tree.leaves(same))


def test_bfloat16_parameters_and_compute():
    compute = ComputeSettings(dtype="bfloat16", param_dtype="bfloat16")
    lion = OptimizerSettings(name="lion", momentum_dtype="bfloat16", peak_learning_rate=1e-2)
    made, state, train_step = make(compute=compute, optimizer=lion)
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(state) if leaf.ndim}
    assert dtypes == {"bfloat16"}
    batch = jax.device_put(batch_of(0), mesh.batch_sharding(made))
    losses = []
    for _ in range(5):
        state, metrics = train_step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    assert state["params"]["embed"]["embedding"].dtype == jnp.bfloat16


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "opt": {
        "intermediate_size": None,
        "ffn_dim": 24,
        "word_embed_proj_dim": 8,
        "do_layer_norm_before": False,
    },
}


@pytest.mark.parametrize(
    ("family", "tied", "param_dtype", "dtype", "microbatches"),
    [
        ("llama", True, "bfloat16", "float32", 1),
        ("llama", True, "bfloat16", "bfloat16", 2),
        ("llama", True, "float32", "bfloat16", 1),
        pytest.param("llama", False, "bfloat16", "float32", 2, marks=pytest.mark.thorough),
        ("gpt2", True, "bfloat16", "bfloat16", 1),
        pytest.param("opt", True, "bfloat16", "float32", 1, marks=pytest.mark.thorough),
        ("opt", False, "bfloat16", "bfloat16", 1),
    ],
)
def test_types_of_parameters_and_of_computing(family, tied, param_dtype, dtype, microbatches):
    """Every leaf keeps its type, gradients and their norm are those of float32, roughly."""
    raw: dict[str, Any] = {"vocab_size": 50} if family == "gpt2" else RAW
    raw = raw | FAMILIES[family] | {"model_type": family, "tie_word_embeddings": tied}
    compute = ComputeSettings(dtype=dtype, param_dtype=param_dtype, microbatches=microbatches)
    adamw = OptimizerSettings(name="adamw", peak_learning_rate=1e-2)
    made, state, train_step = make(raw, compute=compute, optimizer=adamw)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, state)
    whole = jax.tree.map(lambda leaf: np.array(leaf, np.float32), state["params"])
    batch = batch_of(0)
    config = families.translate(raw)[1]

    def naive(params):
        hidden = decoder.hidden_states(params, config, Compute(), jnp.asarray(batch["tokens"]))
        logp = jax.nn.log_softmax(logits(head_of(params, config), hidden))
        nll = -jnp.take_along_axis(logp, batch["targets"][..., None], axis=-1)[..., 0]
        return (nll * batch["weights"]).sum() / batch["weights"].sum()

    loss, gradient = jax.value_and_grad(naive)(whole)
    norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(gradient)))
    state, metrics = train_step(state, jax.device_put(batch, mesh.batch_sharding(made)))
    assert jax.tree.map(lambda leaf: leaf.dtype, state) == dtypes
    assert {leaf.dtype for leaf in jax.tree.leaves(state["params"])} == {jnp.dtype(param_dtype)}
    np.testing.assert_allclose(metrics["loss"], loss, rtol=2e-2)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=5e-2)


def test_loss_and_gradient_norm_are_those_of_the_whole_logits():
    """Loss and gradient norm by the naive loss."""
    made, state, train_step = make(optimizer=OptimizerSettings(name="adamw", clip_norm=0.0))
    batch = batch_of(3)
    params = jax.tree.map(np.array, state["params"])

    def naive(params):
        hidden = decoder.hidden_states(params, CONFIG, Compute(), jnp.asarray(batch["tokens"]))
        logp = jax.nn.log_softmax(logits(head_of(params, CONFIG), hidden))
        nll = -jnp.take_along_axis(logp, batch["targets"][..., None], axis=-1)[..., 0]
        return (nll * batch["weights"]).sum() / batch["weights"].sum()

    want, gradient = jax.value_and_grad(naive)(params)
    _, metrics = train_step(state, jax.device_put(batch, mesh.batch_sharding(made)))
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
    norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)


def test_a_frozen_part_is_read_and_neither_moved_nor_donated():
    """An objective of two models: only the first moves, and both microbatchings agree."""
    settings = Settings(
        scratch=RAW,
        data=DataSettings(batch_size=B, sequence_length=T),
        optimizer=OptimizerSettings(name="lion", peak_learning_rate=1e-2, clip_norm=0.0),
    )
    made = mesh.make_mesh(devices=jax.devices()[:1])
    rule = optimizer.make_optimizer(settings.optimizer, 10)
    teacher = decoder.init(CONFIG, jax.random.key(7))

    def towards_teacher(params, frozen, batch):
        ours, theirs = (
            decoder.hidden_states(p, CONFIG, Compute(), batch["tokens"])
            for p in (params, frozen["teacher"])
        )
        distance = (jnp.square(ours - theirs).mean(-1) * batch["weights"]).sum()
        return distance, {"loss": distance, "twice": 2 * distance}

    found = []
    for parts in (1, 2):
        chosen = dataclasses.replace(settings, compute=ComputeSettings(microbatches=parts))
        params = step.abstract_params(CONFIG, "float32", made)
        abstract = step.abstract_state(params, rule, chosen, made)
        frozen = jax.device_put({"teacher": teacher}, {"teacher": mesh.shardings(CONFIG, made)})
        state = step.begin_from_scratch(CONFIG, rule, chosen, abstract)
        train_step = step.make_train_step(towards_teacher, rule, chosen, abstract, frozen, made)
        eval_step = step.make_eval_step(towards_teacher, params, frozen, made)
        batch = jax.device_put(batch_of(0), mesh.batch_sharding(made))
        before, weight = eval_step(state["params"], frozen, batch)
        for number in range(5):
            state, metrics = train_step(state, frozen, batch)
            if number == 0:
                np.testing.assert_allclose(metrics["loss"], before / weight, rtol=1e-5)
        np.testing.assert_allclose(metrics["twice"], 2 * metrics["loss"], rtol=1e-6)
        jax.tree.map(np.testing.assert_array_equal, frozen["teacher"], teacher)
        assert structure(state["optimizer"]) == structure(abstract["optimizer"])
        assert eval_step(state["params"], frozen, batch)[0] < before
        found.append(float(metrics["loss"]))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)
