"""Merging layers instead of dropping them: every layer of the result is a weighted sum of source
layers, so that the result is a model like any other. No jax.

A recipe has one blend for each layer of the result, in order: source layer → weight. Weights of a
blend add up to 1. A blend belongs to its `base`, the source layer whose place the result takes;
the bases are the keep list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chopjax.chop.importance import Protect, choose_measured
from chopjax.errors import UserError
from chopjax.keep import Keep


@dataclasses.dataclass(frozen=True)
class Blend:
    base: int
    weights: tuple[tuple[int, float], ...]  # (source layer, weight), ascending, no zeros

    @property
    def is_plain(self) -> bool:
        """The base alone, as it was."""
        return self.weights == ((self.base, 1.0),)


Recipe = tuple[Blend, ...]
MERGES = ("average", "laco")


def plain(num_layers: int) -> Recipe:
    """Every layer as it was."""
    return tuple(Blend(layer, ((layer, 1.0),)) for layer in range(num_layers))


def bases(recipe: Recipe) -> Keep:
    return tuple(blend.base for blend in recipe)


def average(recipe: Recipe, place: int, count: int) -> Recipe:
    """`count` layers from `place` on become one, their mean."""
    return _replace(recipe, place, [1 / count] * count)


def collapse(recipe: Recipe, place: int, following: int) -> Recipe:
    """LaCo (arXiv 2402.11187, equation 1): the layer at `place` takes in as many following ones,
    θ + Σ(θ_k - θ)."""
    return _replace(recipe, place, [1.0 - following] + [1.0] * following)


def average_most_similar(
    analysis: Mapping[str, Any], remove: int, protect: Protect
) -> tuple[Recipe, Keep]:
    """Of all blocks of remove + 1 layers, the one with the least angular distance d(ℓ, remove + 1)
    becomes one layer, the mean of its weights. Raises UserError like choose_measured."""
    num_layers = analysis["num_layers"]
    check_average(num_layers, remove, protect)
    kept = choose_measured("similarity", analysis, remove + 1, protect)
    first = min(set(range(num_layers)) - set(kept))
    recipe = average(plain(num_layers), first, remove + 1)
    return recipe, bases(recipe)


def check_average(num_layers: int, remove: int, protect: Protect) -> None:
    """Raise UserError where there are not as many neighbours."""
    protected = protect.first + protect.last
    most = num_layers - protected - 1
    if not 1 <= remove <= most:
        raise UserError(
            f"strategy 'average' makes one layer of {remove + 1} neighbours: of {num_layers} "
            f"layers, {protected} of them protected, it can remove 1 to {most}, not {remove}"
        )


def _replace(recipe: Recipe, place: int, weights: Sequence[float]) -> Recipe:
    parts = recipe[place : place + len(weights)]
    if len(parts) < len(weights):
        raise ValueError(f"{len(weights)} layers from {place} on, of {len(recipe)}")
    total: dict[int, float] = {}
    for part, weight in zip(parts, weights, strict=True):
        for layer, inner in part.weights:
            total[layer] = total.get(layer, 0.0) + weight * inner
    blend = Blend(parts[0].base, tuple(sorted((k, w) for k, w in total.items() if w)))
    return (*recipe[:place], blend, *recipe[place + len(weights) :])


def matrix(recipe: Recipe, num_layers: int) -> np.ndarray:
    """[num_layers, num_layers] float32: row r holds the weights of layer r of the result; rows
    after the last are zero."""
    table_RL = np.zeros((num_layers, num_layers), np.float32)
    for row, blend in enumerate(recipe):
        for layer, weight in blend.weights:
            table_RL[row, layer] = weight
    return table_RL


def blend_arrays(
    arrays: Mapping[int, np.ndarray], blend: Blend, dtype: np.dtype[Any]
) -> np.ndarray:
    """Σ weight · array in float32, rounded once. arrays: by source layer."""
    total = sum(np.float32(w) * arrays[layer].astype(np.float32) for layer, w in blend.weights)
    return np.asarray(total).astype(dtype)


def as_json(recipe: Recipe) -> dict[str, dict[str, float]]:
    """For chopjax.json: base → weights, of the layers that are not plain."""
    return {
        str(blend.base): {str(layer): weight for layer, weight in blend.weights}
        for blend in recipe
        if not blend.is_plain
    }
