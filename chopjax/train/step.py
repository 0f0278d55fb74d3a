"""One optimizer step, jitted over the mesh; the state it walks on; and the evaluation step.

What is trained, what is carried and what is minimised are three arguments. State is a plain nested
dict: `params` (the trainable part), `optimizer` (optax's state, whose momenta mirror params),
`step` (updates done so far) and, with a spike guard, `guard`; with DimCHOP, `importance`
(dimchop.py). The frozen part is any pytree that the objective reads: it is neither differentiated
nor donated nor saved. Batches are dicts as data/batches.py makes them: tokens, targets, segments,
positions [B, T] int32 and weights [B, T] float32. A training step adds `keys` [B], a random key a
row.

Axes: B batch, T time, A microbatches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from chopjax.models import decoder
from chopjax.models.config import ModelConfig
from chopjax.models.mesh import BATCH_AXES, batch_sharding, constrain, replicated, shardings
from chopjax.models.parameters import Params
from chopjax.train import dimchop
from chopjax.train.fixed_masks import without_gradient, zeros_kept
from chopjax.train.gather import gathered
from chopjax.train.settings import Settings
from chopjax.train.spike_guard import first_guard, guarded

State = dict[str, Any]
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
# (trainable, frozen, batch) → (what is minimised, metrics). Both are sums over the batch's weights,
# so that microbatches add up and the caller decides what they are divided by. Metrics hold `loss`,
# the value for people and for the spike guard, in nats where the objective has a unit.
Objective = Callable[[Params, Any, Batch], tuple[jax.Array, Metrics]]

# A random key → what of the trainable part no model brings along.
Fresh = Callable[[jax.Array], Params]

# What a batch consists of, all [B, T].
BATCH_DTYPES = {
    "tokens": jnp.int32,
    "targets": jnp.int32,
    "segments": jnp.int32,
    "positions": jnp.int32,
    "weights": jnp.float32,
}


def batch_fields(top_k: int = 0) -> dict[str, tuple[tuple[int, ...], Any]]:
    """What a batch consists of: name → (axes behind [B, T], dtype). top_k: of a teacher's likeliest
    tokens, that come with it."""
    fields: dict[str, tuple[tuple[int, ...], Any]] = {
        name: ((), dtype) for name, dtype in BATCH_DTYPES.items()
    }
    if top_k:
        fields |= {"top_tokens": ((top_k,), jnp.int32), "top_log_probs": ((top_k,), jnp.float32)}
    return fields


def abstract_batch(settings: Settings, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a training batch."""
    shape = (settings.data.batch_size, settings.data.sequence_length)
    rows = batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((*shape, *tail), dtype, sharding=rows)
        for name, (tail, dtype) in batch_fields(settings.teacher.top_k).items()
    }


def initial_state(
    params: Params, optimizer: optax.GradientTransformation, settings: Settings
) -> State:
    """The state before the first step. Traceable, so that it can be born sharded."""
    state: State = {
        "params": params,
        "optimizer": optimizer.init(params),
        "step": jnp.zeros((), jnp.int32),
    }
    if settings.optimizer.spike_factor:
        state["guard"] = first_guard()
    if settings.dimchop.final:
        state["importance"] = dimchop.no_scores(params)
    return state


def abstract_params(config: ModelConfig, dtype: Any, mesh: Mesh) -> Params:
    """Shapes, dtypes and shardings of a decoder's parameters, without an array anywhere."""
    placed: Params = jax.tree.map(_placed, decoder.abstract(config, dtype), shardings(config, mesh))
    return placed


def abstract_state(
    params: Params, optimizer: optax.GradientTransformation, settings: Settings, mesh: Mesh
) -> State:
    """Shapes, dtypes and shardings of the state around a trainable part that has them.

    Momenta and scores are sharded like the parameters that they belong to; all else is whole
    everywhere.
    """
    shapes = jax.eval_shape(lambda p: initial_state(p, optimizer, settings), params)
    whole = replicated(mesh)
    placed: State = jax.tree.map(lambda shape: _placed(shape, whole), shapes)
    placed["params"] = params
    placed["optimizer"] = optax.tree_utils.tree_map_params(
        optimizer,
        _placed,
        shapes["optimizer"],
        shardings_of(params),
        transform_non_params=lambda shape: _placed(shape, whole),
    )
    if "importance" in shapes:
        where = shardings_of(dimchop.kernels_of(params))
        for name in dimchop.TREES:
            placed["importance"][name] = jax.tree.map(_placed, shapes["importance"][name], where)
    return placed


def _placed(shape: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def shardings_of(abstract: Any) -> Any:
    """The shardings of a tree of arrays or ShapeDtypeStructs."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def begin(
    params: Params,
    optimizer: optax.GradientTransformation,
    settings: Settings,
    abstract: State,
    fresh: Fresh = lambda key: {},
) -> State:
    """The first state around parameters that are on the mesh already; they are donated."""

    def make(params: Params, key: jax.Array) -> State:
        return initial_state(params | fresh(key), optimizer, settings)

    born = jax.jit(make, out_shardings=shardings_of(abstract), donate_argnums=0)
    state: State = born(params, jax.random.key(settings.seed))
    return state


def begin_from_scratch(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    settings: Settings,
    abstract: State,
    fresh: Fresh = lambda key: {},
) -> State:
    """The first state around random parameters, born sharded."""

    def make(key: jax.Array) -> State:
        params = decoder.init(config, key, settings.compute.param_dtype)
        return initial_state(params | fresh(key), optimizer, settings)

    born = jax.jit(make, out_shardings=shardings_of(abstract))
    state: State = born(jax.random.key(settings.seed))
    return state


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    settings: Settings,
    abstract: State,
    frozen: Any,
    mesh: Mesh,
    matrices: Sequence[dimchop.Matrix] = (),
) -> jax.stages.Wrapped:
    """The jitted step: (state, frozen, batch) → (state, metrics). The old state is donated.

    abstract, frozen: shapes and shardings of the first two (abstract_state; {} for nothing). What
    is minimised is divided by the whole batch's weights, whatever the number of microbatches.
    matrices: with DimCHOP, those that columns are masked in (Task has them). Metrics, float32
    scalars: the objective's, `grad_norm` (before clipping), `tokens` (the weights' sum), with a
    spike guard `skipped` (updates left out so far) and with DimCHOP `zero_columns` (of the
    matrices', the share that this step has set to zero).
    """
    assert bool(matrices) == bool(settings.dimchop.final)
    parts = settings.compute.microbatches
    gradient_of = jax.value_and_grad(objective, has_aux=True)

    def gradients(params: Params, frozen: Any, batch: Batch) -> tuple[Metrics, Params]:
        if parts == 1:
            (_, metrics), grads = gradient_of(params, frozen, batch)
            return metrics, grads

        def add(sums: Any, part: Batch) -> tuple[Any, None]:
            (_, metrics), grads = gradient_of(params, frozen, part)
            grads = jax.tree.map(jax.lax.with_sharding_constraint, grads, of_params)
            return jax.tree.map(lambda total, new: total + new, sums, (metrics, grads)), None

        of_params = shardings_of(abstract["params"])
        if settings.compute.gather == "step":
            params = gathered(params, of_params, settings.compute.dtype)
        split = _microbatches(batch, parts)
        first = jax.tree.map(lambda x: x[0], split)
        metrics = jax.eval_shape(lambda: objective(params, frozen, first)[1])
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (metrics, params))
        (totals, grads), _ = jax.lax.scan(add, zeros, split)
        return totals, grads

    def train_step(state: State, frozen: Any, batch: Batch) -> tuple[State, Metrics]:
        tokens = jnp.sum(batch["weights"])
        batch = batch | {
            "weights": batch["weights"] / jnp.maximum(tokens, 1),
            "keys": _row_keys(settings.seed, state["step"], batch["weights"].shape[0]),
        }
        metrics, grads = gradients(state["params"], frozen, batch)
        if settings.masks == "fixed":
            grads = without_gradient(state["params"], grads)
        updates, moved = optimizer.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        if settings.masks == "fixed":
            params = zeros_kept(state["params"], params)
        new: State = {"params": params, "optimizer": moved, "step": state["step"] + 1}
        if matrices:
            new["importance"] = dimchop.with_scores(
                state["importance"], params, grads, settings.dimchop, new["step"]
            )
        metrics = metrics | {"grad_norm": optax.global_norm(grads), "tokens": tokens}
        if settings.optimizer.spike_factor:
            new = guarded(state, new, metrics, settings.optimizer.spike_factor)
            metrics["skipped"] = new["guard"]["skipped"].astype(jnp.float32)
        if matrices:  # of a step that was left out as well: where zeros are due, they are there
            new["params"], metrics["zero_columns"] = dimchop.masked(
                new["params"], new["importance"], matrices, settings.dimchop, new["step"]
            )
        return new, metrics

    where = shardings_of(abstract)
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(where, shardings_of(frozen), batch_sharding(mesh)),
        out_shardings=(where, replicated(mesh)),
    )


def make_eval_step(
    objective: Objective, params: Params, frozen: Any, mesh: Mesh
) -> jax.stages.Wrapped:
    """The jitted evaluation: (params, frozen, batch) → (Σ w·loss, Σ w).

    params, frozen: shapes and shardings.
    """

    def eval_step(params: Params, frozen: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return objective(params, frozen, batch)[1]["loss"], jnp.sum(batch["weights"])

    return jax.jit(
        eval_step,
        in_shardings=(shardings_of(params), shardings_of(frozen), batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )


def make_finite_check(mesh: Mesh) -> jax.stages.Wrapped:
    """The jitted check of a state: whether every number in it is one."""

    def is_finite(state: State) -> jax.Array:
        return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)]))

    return jax.jit(is_finite, out_shardings=replicated(mesh))


def _row_keys(seed: int, step: jax.Array, rows: int) -> jax.Array:
    """[B] random keys, for dropout: of seed, step and row alone, so that neither microbatches nor
    the mesh nor a resumption change what they draw."""
    of_step = jax.random.fold_in(jax.random.key(seed), step)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(of_step, jnp.arange(rows))
    return constrain(keys_B, BATCH_AXES)


def _microbatches(batch: Batch, parts: int) -> Batch:
    """[B, T] → [A, B/A, T]. Part a takes rows a, a+A, …: so every device has rows in every part."""

    def cut(x_BT: jax.Array) -> jax.Array:
        rows = x_BT.shape[0] // parts
        return x_BT.reshape(rows, parts, *x_BT.shape[1:]).swapaxes(0, 1)

    split: Batch = jax.tree.map(cut, batch)
    return split
