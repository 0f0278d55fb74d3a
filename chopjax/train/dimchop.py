"""DimCHOP (arXiv 2305.14864, section 3.2): columns of the blocks' matrices become zero while
training goes on. Scores, their averages and the schedule are PLATON's (arXiv 2206.12562).

After every update I = |θ·∂L/∂θ| of each weight: θ as the update left it, so that what was zero has
a score and may come back; the gradient of the whole batch, before clipping. Over `interval` steps
I is averaged; the average m enters

    Ī ← β₁Ī + (1 - β₁)m        Ū ← β₂Ū + (1 - β₂)|m - Ī|        S = Ī·Ū

(Ī on the right of Ū is the new one.) A column's score is ΣS over it, and in each matrix as many
columns go as the schedule says, those with the smallest scores. Where a family's files hold several
kernels in one tensor, that is the matrix, as for `chopjax sparsify`.

Until step `end` masked weights are set to zero at every choice, and train on in between like any
others; from there on after every update. They keep their gradients and their momentum all along.

State: `importance`, of {"window": ΣI since the last choice, "mean": Ī, "uncertainty": Ū, each like
the kernels' part of the parameters, in float32; "steps": how many are in `window`}. Once the layers
are chopped, their scores are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from chopjax.models import parameters
from chopjax.models.config import ModelConfig
from chopjax.models.families import FAMILIES
from chopjax.models.mesh import constrain
from chopjax.models.parameters import KERNELS, KernelAxes, Params
from chopjax.train.dimchop_settings import DimChopSettings

TREES = ("window", "mean", "uncertainty")

# Kernels that make one matrix together: path → axes.
Matrix = Mapping[str, KernelAxes]


def matrices_of(config: ModelConfig) -> tuple[Matrix, ...]:
    """The blocks' kernels; together those that lie in one tensor of the family's files."""
    kernels = parameters.kernels(config)
    rows = [
        row
        for row in FAMILIES[config.family].rows
        if row.targets[0] in kernels and (row.when is None or row.when(config))
    ]
    return tuple({path: kernels[path] for path in row.targets} for row in rows)


def kernels_of(params: Params) -> Params:
    """Of a tree like the parameters', what has scores."""
    parts: Params = {"attention": {}, "mlp": {}}
    for name, part in KERNELS.items():
        if name in params["blocks"][part]:
            parts[part][name] = params["blocks"][part][name]
    return {"blocks": parts}


def no_scores(params: Params) -> Params:
    """The state before the first step."""
    scored = kernels_of(params)
    zeros = {
        name: jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), scored) for name in TREES
    }
    return zeros | {"steps": jnp.zeros((), jnp.int32)}


def with_scores(
    importance: Params, params: Params, gradients: Params, settings: DimChopSettings, step: Any
) -> Params:
    """The state after an update, the `step`-th of the run; params: as it left them."""
    b1, b2 = settings.beta1, settings.beta2
    steps = importance["steps"] + 1
    window = jax.tree.map(
        lambda total, w, g: total + jnp.abs(w.astype(jnp.float32) * g.astype(jnp.float32)),
        importance["window"],
        kernels_of(params),
        kernels_of(gradients),
    )
    mean = jax.tree.map(
        lambda old, total: b1 * old + (1 - b1) * total / steps, importance["mean"], window
    )
    uncertainty = jax.tree.map(
        lambda old, total, new: b2 * old + (1 - b2) * jnp.abs(total / steps - new),
        importance["uncertainty"],
        window,
        mean,
    )
    goes_on = importance | {"window": window, "steps": steps}
    closed = no_scores(params) | {"mean": mean, "uncertainty": uncertainty}
    closes = step % settings.interval == 0
    after: Params = jax.tree.map(lambda a, b: jnp.where(closes, a, b), closed, goes_on)
    return after


def share(settings: DimChopSettings, step: Any) -> jax.Array:
    """Of each matrix's columns, what is masked after so many steps: PLATON's cubic schedule."""
    grown = (jnp.asarray(step, jnp.float32) - settings.start) / (settings.end - settings.start)
    return settings.final * (1 - (1 - jnp.clip(grown, 0, 1)) ** 3)


def masked(
    params: Params,
    importance: Params,
    matrices: Sequence[Matrix],
    settings: DimChopSettings,
    step: Any,
) -> tuple[Params, jax.Array]:
    """The parameters after the `step`-th update, with zeros where one is due; and the share of all
    matrices' columns that are zero by it."""
    due = (step % settings.interval == 0) | (step >= settings.end)
    now = jnp.where(due, share(settings, step), 0.0)
    flat = flatten_dict(params, sep="/")
    mean, uncertainty = (flatten_dict(importance[name], sep="/") for name in TREES[1:])
    zero, total = jnp.zeros((), jnp.int32), 0
    for matrix in matrices:
        scores = {path: mean[path] * uncertainty[path] for path in matrix}
        for path, mask in _masks(scores, matrix, settings.columns, now).items():
            flat[path] = jnp.where(mask, 0, flat[path])
            zero, total = zero + mask.sum(), total + mask.size
    return unflatten_dict(flat, sep="/"), zero / total


def _masks(
    scores: Mapping[str, jax.Array], matrix: Matrix, columns: str, now: jax.Array
) -> dict[str, jax.Array]:
    """Path → bool, of size 1 along the axes that a column runs over: the share `now` of the
    matrix's columns, those that score lowest."""
    sums, flat = {}, []
    for path, axes in matrix.items():
        first = len(axes.leading)
        middle = first + len(axes.inputs)
        along = range(middle, scores[path].ndim) if columns == "input" else range(first, middle)
        sums[path] = scores[path].sum(tuple(along), keepdims=True)
        flat.append(sums[path].reshape(*scores[path].shape[:first], -1))
    # What kernels of one matrix read is the same; what they make lies side by side.
    joined = sum(flat[1:], flat[0]) if columns == "input" else jnp.concatenate(flat, -1)
    # A device needs all of a matrix's columns. Equal ones go in their order.
    rank = jnp.argsort(jnp.argsort(constrain(joined)))
    mask = rank < jnp.round(now * joined.shape[-1])
    ends = np.cumsum([part.shape[-1] for part in flat])[:-1]
    parts = [mask] * len(flat) if columns == "input" else jnp.split(mask, ends, axis=-1)
    return {path: part.reshape(sums[path].shape) for path, part in zip(matrix, parts, strict=True)}
