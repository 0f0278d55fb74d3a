"""Repairing gaps without training: maps of what a layer adds, folded into that layer.

S is the residual stream that leaves the student's layer before a gap, E the parent's where the next
kept layer reads it. ReplaceMe (arXiv 2505.02819) finds the linear map of what that layer's
feed-forward adds which brings S nearest to E, and multiplies it into the down projection: a model
like any other, with nothing trained. Gaps are repaired from the input upwards, each with the states
of the student as it is repaired so far, so that a later gap also mends what an earlier one left.

Axes: D model, L layers, N tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from chopjax.chop.calibration import CalibrationBatch
from chopjax.chop.fold_place import (
    Gap,
    MapPlace,
    check_gaps,
    gaps_of,
    map_place,
    scalar_place,
)
from chopjax.chop.laco import blend_params
from chopjax.chop.least_squares import Sums, solve
from chopjax.chop.merge import Recipe, matrix, plain
from chopjax.chop.repair_walk import Errors, Walk
from chopjax.errors import UserError
from chopjax.keep import Keep
from chopjax.models import parameters
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import Params

Place = tuple[str, int | None]  # a path of parameters.py, and the layer in the parent's numbering


@dataclasses.dataclass(frozen=True)
class Repaired:
    """params: the student's, as the decoder runs it, on the parent's stack of layers: those that
    went are still there and are to be left out. config: its, with the parent's layers.
    values: what differs from the student before. gaps: for people, one a gap."""

    params: Params
    config: ModelConfig
    values: dict[Place, np.ndarray]
    gaps: list[dict[str, Any]]


def student_of(params: Params, config: ModelConfig, recipe: Recipe) -> Params:
    """The parent's parameters with merged layers in the places of their bases; the same ones where
    nothing is merged."""
    blends = {blend.base: blend for blend in recipe if not blend.is_plain}
    if not blends:
        return params
    rows = tuple(blends.get(each.base, each) for each in plain(config.num_layers))
    blended: Params = blend_params(params, matrix(rows, config.num_layers))
    return blended


def repair_params(
    params: Params,
    student: Params,
    config: ModelConfig,
    student_config: ModelConfig,
    compute: Compute,
    batches: Sequence[CalibrationBatch],
    keep: Keep,
    kind: str,
    ridge: float,
    advance_bar: Callable[[int], None] = lambda count: None,
) -> Repaired:
    """The student with its gaps repaired. student: of `student_of`; student_config: the parent's,
    or with the biases that the repair needs (fold_place.with_bias).

    advance_bar: called with the layers that ran on the whole text, `layer_runs` of them in all.
    Raises UserError where a gap cannot be repaired.
    """
    gaps = gaps_of(keep, config.num_layers)
    check_gaps(kind, gaps)
    student = _with_biases(student, student_config)
    walk = Walk(params, student, config, student_config, compute, batches, advance_bar)
    if kind == "scalar":
        return _scale(walk, gaps, keep, ridge)
    place, found = map_place(student_config, kind), []
    values: dict[Place, np.ndarray] = {}
    for gap in gaps:
        walk.to(gap)
        fresh, about = _map(walk, gap, place, kind == "affine", ridge)
        values |= fresh
        found.append(about)
    return Repaired(walk.student, student_config, values, found)


def _map(
    walk: Walk, gap: Gap, place: MapPlace, affine: bool, ridge: float
) -> tuple[dict[Place, np.ndarray], dict[str, Any]]:
    """Fold a map into the layer before a gap; the student stands behind that layer afterwards."""
    layer = gap.before
    assert layer is not None
    sums, before = Sums(place.diagonal), Errors()
    for rest_ND, fed_ND, end_ND in walk.halves(layer):
        lack_ND = end_ND - rest_ND - fed_ND
        sums.add(fed_ND, lack_ND)
        before.add(lack_ND, end_ND)
    change, constant = solve(sums, affine, ridge)
    # The sums are of what is added behind the residual scale, the bias stands before it.
    inner = 1.0 if place.whole else walk.config.residual_scale
    values: dict[Place, np.ndarray] = {}
    for path in (place.kernel, place.bias):
        if path is None:
            continue
        old = np.asarray(_leaf(walk.student, path)[layer])
        offset = walk.config.norm.offset if path == place.kernel and place.diagonal else 0.0
        wide = old.astype(np.float64) + offset
        wide = wide * (1 + change) if place.diagonal else wide + wide @ change
        if path == place.bias:
            wide = wide + constant / inner
        values[path, layer] = _rounded(wide - offset, old.dtype, gap)
    walk.student = _with_values(walk.student, values)
    walk.pass_layer(layer)
    about: dict[str, Any] = {"layers": gap.layers, "folded_into": layer}
    return values, about | before.named("before") | walk.errors().named("after")


def _scale(walk: Walk, gaps: Sequence[Gap], keep: Keep, ridge: float) -> Repaired:
    """Prune&Comp's kind (arXiv 2507.18212; its formula is not public): one number c for each gap,
    here that of least squares, c = (⟨S, E⟩ + λ)/(⟨S, S⟩ + λ), λ = ridge·⟨S, S⟩.

    Everything that writes to the stream before the gap is multiplied by c. Every reader has a norm,
    so that nothing else changes, but for the norms' epsilon.
    """
    place, found = scalar_place(walk.config), []
    factors, everywhere = dict.fromkeys(keep, 1.0), 1.0
    for gap in gaps:
        walk.to(gap)
        if gap.before is not None:
            walk.pass_layer(gap.before)
        before = walk.errors()
        along = size = 0.0
        for start_ND, end_ND in walk.states():
            along += float((start_ND * end_ND).sum())
            size += float(np.square(start_ND).sum())
        factor = (along + ridge * size) / (size + ridge * size) if size else 1.0
        if factor <= 0:
            raise UserError(
                f"--repair scalar: behind layers {gap.layers} the stream points away from where "
                f"it was before them (factor {factor:.3g}), which no factor mends"
            )
        walk.starts = [state_BTD * np.float32(factor) for state_BTD in walk.starts]
        everywhere *= factor
        factors = {k: f * factor if k < gap.first else f for k, f in factors.items()}
        about: dict[str, Any] = {"layers": gap.layers, "folded_into": gap.before, "factor": factor}
        found.append(about | before.named("before") | walk.errors().named("after"))
    times: dict[Place, float] = dict.fromkeys([(path, None) for path in place.times], everywhere)
    times |= dict.fromkeys([(path, None) for path in place.divided], 1 / everywhere)
    for layer, factor in factors.items():
        if layer < gaps[-1].first:
            times |= dict.fromkeys([(path, layer) for path in place.by_layer], factor)
    values = {}
    for (path, at), factor in times.items():
        leaf = _leaf(walk.student, path)
        old = np.asarray(leaf if at is None else leaf[at])
        offset = walk.config.norm.offset if path.endswith("norm/scale") else 0.0
        # A table of embeddings is large: float64 where the type asks for it alone.
        wide = old.astype(np.result_type(np.float32, old.dtype))
        values[path, at] = _rounded((wide + offset) * wide.dtype.type(factor) - offset, old.dtype)
    return Repaired(_with_values(walk.student, values), walk.config, values, found)


# ------------------------------------------------------------------------------------- Parameters


def _rounded(wide: np.ndarray, dtype: np.dtype[Any], gap: Gap | None = None) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = wide.astype(dtype)
    if not np.isfinite(narrow.astype(np.float32)).all():
        where = f" for the gap at layers {gap.layers}" if gap else ""
        raise UserError(
            f"--repair: the weights found{where} are too large for {dtype}, or no numbers; give "
            "more text (--sequences) or a larger --ridge"
        )
    return narrow


def _leaf(params: Params, path: str) -> Any:
    value: Any = params
    for key in path.split("/"):
        value = value[key]
    return value


def _with_leaf(params: Params, path: str, leaf: Any) -> Params:
    key, _, rest = path.partition("/")
    return params | {key: _with_leaf(params.get(key, {}), rest, leaf) if rest else leaf}


def _with_values(params: Params, values: dict[Place, np.ndarray]) -> Params:
    by_path: dict[str, dict[int | None, np.ndarray]] = {}
    for (path, layer), value in values.items():
        by_path.setdefault(path, {})[layer] = value
    for path, by_layer in by_path.items():
        if None in by_layer:
            leaf = jnp.asarray(by_layer[None])
        else:
            layers = np.array(list(by_layer))
            leaf = (
                jnp.asarray(_leaf(params, path)).at[layers].set(np.stack(list(by_layer.values())))
            )
        params = _with_leaf(params, path, leaf)
    return params


def _with_biases(params: Params, config: ModelConfig) -> Params:
    """Zeros for the biases of the feed-forward that the parameters lack."""
    shapes = parameters.shapes(config)
    if config.mlp_bias and "down_bias" not in params["blocks"]["mlp"]:
        dtype = params["blocks"]["mlp"]["down"].dtype
        for path in (p for p in shapes if p.startswith("blocks/mlp/") and p.endswith("_bias")):
            params = _with_leaf(params, path, jnp.zeros(shapes[path], dtype))
    return params
