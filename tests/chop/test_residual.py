"""Measures of the residual stream against transformers' hidden states and plain numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from chopjax.checkpoint.load import load
from chopjax.chop.calibration import make_batches
from chopjax.chop.residual import measure_residual
from chopjax.models import decoder
from chopjax.models.compute import Compute

LENGTHS = (20, 13, 2, 17, 9)


def sequences() -> list[list[int]]:
    draw = np.random.default_rng(3)
    return [draw.integers(1, 97, length).tolist() for length in LENGTHS]


def residuals(model: Any, sequence: list[int]) -> np.ndarray:
    """x^(0) … x^(L) of one sequence, [M, T, D] float64, from hooks on the blocks themselves."""
    parent, name = checkpoints.blocks_of(model)
    blocks = getattr(parent, name)
    seen: list[np.ndarray] = []

    def keep(x: Any) -> None:
        seen.append((x[0] if isinstance(x, tuple) else x)[0].double().numpy())

    hooks = [blocks[0].register_forward_pre_hook(lambda _, args: keep(args))]
    hooks += [block.register_forward_hook(lambda _, __, out: keep(out)) for block in blocks]
    with torch.no_grad():
        model(torch.tensor([sequence]))
    for hook in hooks:
        hook.remove()
    return np.stack(seen)


def angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return np.arccos(np.clip(cosine, -1, 1)) / np.pi


@pytest.mark.parametrize("family", families.BY_LAYER)
@pytest.mark.parametrize("every_token", [False, True])
def test_measures_are_those_of_the_papers(tmp_path: Path, family: str, every_token: bool) -> None:
    checkpoints.write_checkpoint(tmp_path / "m", family)
    model = checkpoints.random_model(family)
    ours = load(str(tmp_path / "m"))
    found = measure_residual(
        ours.params, ours.config, Compute(), make_batches(sequences(), 2), every_token
    )
    states = [residuals(model, sequence) for sequence in sequences()]
    L = ours.config.num_layers
    for layer in range(L):
        for count in range(1, L + 1):
            if layer + count > L:
                assert np.isnan(found.distance_LL[layer, count - 1])
                continue
            angles = [angle(x[layer], x[layer + count]) for x in states]
            chosen = np.concatenate(angles) if every_token else np.array([a[-1] for a in angles])
            assert found.distance_LL[layer, count - 1] == pytest.approx(chosen.mean(), abs=2e-5)
            assert found.deviation_LL[layer, count - 1] == pytest.approx(chosen.std(), abs=1e-3)
    before = np.concatenate([x[:-1] for x in states], axis=1)
    after = np.concatenate([x[1:] for x in states], axis=1)
    turn = 1 - np.cos(np.pi * angle(before, after))
    size = np.linalg.norm(after - before, axis=-1) / np.linalg.norm(after, axis=-1)
    np.testing.assert_allclose(found.influence_L, turn.mean(axis=1), rtol=1e-4)
    np.testing.assert_allclose(found.cosine_score_L, turn.sum(axis=1), rtol=1e-4)
    np.testing.assert_allclose(found.magnitude_L, size.mean(axis=1), rtol=1e-4)
    assert found.tokens == sum(LENGTHS)
    assert found.examples == (sum(LENGTHS) if every_token else len(LENGTHS))


def test_mean_of_angles_and_the_stream_before_the_final_norm(tmp_path: Path) -> None:
    """The two mistakes that are easy to make give other numbers, so the test above would tell."""
    model = checkpoints.random_model("llama")
    states = [residuals(model, sequence) for sequence in sequences()]
    last = np.stack([x[:, -1] for x in states])
    cosines = np.cos(np.pi * angle(last[:, 0], last[:, 4]))
    assert abs(np.arccos(cosines.mean()) / np.pi - angle(last[:, 0], last[:, 4]).mean()) > 1e-4
    normed = model.model.norm(torch.tensor(last[:, 4]).float()).detach().double().numpy()
    assert abs(angle(last[:, 0], normed).mean() - angle(last[:, 0], last[:, 4]).mean()) > 1e-4


def test_a_layer_that_does_nothing_has_distance_zero(tmp_path: Path) -> None:
    """Where the cosine is 1 up to rounding, arccos would be nan or off by 1e-4."""
    checkpoints.write_checkpoint(tmp_path / "m", "llama")
    ours = load(str(tmp_path / "m"))
    blocks = ours.params["blocks"]
    blocks["attention"]["output"] = blocks["attention"]["output"].at[1:3].set(0)
    blocks["mlp"]["down"] = blocks["mlp"]["down"].at[1:3].set(0)
    found = measure_residual(ours.params, ours.config, Compute(), make_batches(sequences(), 5))
    assert found.distance_LL[1, 1] == 0
    assert found.influence_L[2] < 1e-12
    assert found.magnitude_L[1] == 0


def test_batch_size_does_not_matter(tmp_path: Path) -> None:
    """Filled rows and rows that only fill a batch count for nothing."""
    checkpoints.write_checkpoint(tmp_path / "m", "llama")
    ours = load(str(tmp_path / "m"))
    alone, together = (
        measure_residual(ours.params, ours.config, Compute(), make_batches(sequences(), size))
        for size in (1, 4)
    )
    np.testing.assert_allclose(together.distance_LL, alone.distance_LL, atol=1e-5)
    np.testing.assert_allclose(together.influence_L, alone.influence_L, rtol=1e-5)


def test_steps_compose_to_hidden_states(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path / "m", "gpt2")
    ours = load(str(tmp_path / "m"))
    tokens_BT = jnp.array(sequences()[0])[None]
    positions_BT = jnp.arange(tokens_BT.shape[1])[None]
    parts = decoder.parts(ours.params, ours.config, Compute(), positions_BT)
    x_BTD = parts.embed(tokens_BT)
    for layer in range(ours.config.num_layers):
        x_BTD = parts.block(x_BTD, jax.tree.map(lambda w, i=layer: w[i], parts.stack))
    whole = decoder.hidden_states(ours.params, ours.config, Compute(), tokens_BT)
    np.testing.assert_allclose(parts.finish(x_BTD), whole, atol=1e-5)
