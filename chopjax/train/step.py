"""One optimizer step, jitted over the mesh; the state it walks on; and the evaluation step.

State is a plain nested dict: `params`, `optimizer` (optax's state, whose momenta mirror params),
`step` (updates done so far) and, with a spike guard, `guard`. Batches are dicts as data/batches.py
makes them: tokens, targets, segments, positions [B, T] int32 and weights [B, T] float32.

Axes: B batch, T time, E what the head reads, V vocabulary, A microbatches.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from chopjax.models import decoder
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import Params
from chopjax.train.loss import cross_entropy, token_losses
from chopjax.train.mesh import batch_sharding, replicated, shardings
from chopjax.train.settings import Settings

State = dict[str, Any]
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

# What a batch consists of, all [B, T].
BATCH_DTYPES = {
    "tokens": jnp.int32,
    "targets": jnp.int32,
    "segments": jnp.int32,
    "positions": jnp.int32,
    "weights": jnp.float32,
}

GUARD_DECAY = 0.99  # of the running mean of the loss that the spike guard compares with


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
        state["guard"] = {
            "mean_loss": jnp.zeros((), jnp.float32),
            "steps": jnp.zeros((), jnp.int32),
            "skipped": jnp.zeros((), jnp.int32),
        }
    return state


def abstract_state(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    settings: Settings,
    mesh: Mesh,
) -> State:
    """Shapes, dtypes and shardings of the state, without an array anywhere.

    Momenta are sharded like the parameters that they belong to; all else is whole everywhere.
    """
    params = decoder.abstract(config, settings.compute.param_dtype)
    shapes = jax.eval_shape(lambda p: initial_state(p, optimizer, settings), params)
    by_parameter, whole = shardings(config, mesh), replicated(mesh)

    def place(shape: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    placed = jax.tree.map(lambda shape: place(shape, whole), shapes)
    placed["params"] = jax.tree.map(place, shapes["params"], by_parameter)
    placed["optimizer"] = optax.tree_utils.tree_map_params(
        optimizer,
        place,
        shapes["optimizer"],
        by_parameter,
        transform_non_params=lambda shape: place(shape, whole),
    )
    return placed


def shardings_of(abstract: State) -> Any:
    """The shardings of a tree of ShapeDtypeStructs."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def begin(
    params: Params, optimizer: optax.GradientTransformation, settings: Settings, abstract: State
) -> State:
    """The first state around parameters that are on the mesh already; they are donated."""
    make = jax.jit(
        lambda p: initial_state(p, optimizer, settings),
        out_shardings=shardings_of(abstract),
        donate_argnums=0,
    )
    return make(params)


def begin_from_scratch(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    settings: Settings,
    abstract: State,
) -> State:
    """The first state around random parameters, born sharded."""

    def make(key: jax.Array) -> State:
        params = decoder.init(config, key, settings.compute.param_dtype)
        return initial_state(params, optimizer, settings)

    return jax.jit(make, out_shardings=shardings_of(abstract))(jax.random.key(settings.seed))


def make_train_step(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    settings: Settings,
    mesh: Mesh,
) -> jax.stages.Wrapped:
    """The jitted step: (state, batch) → (state, metrics). The old state is donated.

    The loss is the mean over the whole batch's weights, whatever the number of microbatches.
    Metrics, float32 scalars: `loss` (nats per token, without z-loss), `grad_norm` (before
    clipping), `tokens` (the weights' sum) and, with a spike guard, `skipped` (updates left out so
    far).
    """
    compute, chunk = settings.compute, settings.compute.loss_chunk
    z_loss, parts = settings.optimizer.z_loss, settings.compute.microbatches

    def loss_of(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        hidden_BTE = _hidden(params, config, compute, settings, batch)
        kernel_EV = decoder.head_kernel(params, config)
        return cross_entropy(
            hidden_BTE, kernel_EV, batch["targets"], batch["weights"], z_loss, chunk
        )

    gradient_of = jax.value_and_grad(loss_of, has_aux=True)

    def gradients(params: Params, batch: Batch) -> tuple[jax.Array, Params]:
        if parts == 1:
            (_, nll), grads = gradient_of(params, batch)
            return nll, grads

        def add(sums: Any, part: Batch) -> tuple[Any, None]:
            (_, nll), grads = gradient_of(params, part)
            return jax.tree.map(lambda total, new: total + new, sums, (nll, grads)), None

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        start = (jnp.zeros((), jnp.float32), zeros)
        sums, _ = jax.lax.scan(add, start, _microbatches(batch, parts))
        return sums

    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        tokens = jnp.sum(batch["weights"])
        batch = batch | {"weights": batch["weights"] / jnp.maximum(tokens, 1)}
        loss, grads = gradients(state["params"], batch)
        updates, moved = optimizer.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        new: State = {"params": params, "optimizer": moved, "step": state["step"] + 1}
        metrics = {"loss": loss, "grad_norm": optax.global_norm(grads), "tokens": tokens}
        if settings.optimizer.spike_factor:
            new = _guarded(state, new, metrics, settings.optimizer.spike_factor)
            metrics["skipped"] = new["guard"]["skipped"].astype(jnp.float32)
        return new, metrics

    abstract = abstract_state(config, optimizer, settings, mesh)
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(shardings_of(abstract), batch_sharding(mesh)),
        out_shardings=(shardings_of(abstract), replicated(mesh)),
    )


def make_eval_step(config: ModelConfig, settings: Settings, mesh: Mesh) -> jax.stages.Wrapped:
    """The jitted evaluation: (params, batch) → (Σ w·nll in nats, Σ w)."""
    compute = settings.compute

    def eval_step(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        hidden_BTE = _hidden(params, config, compute, settings, batch)
        losses_BT = token_losses(
            hidden_BTE,
            decoder.head_kernel(params, config),
            batch["targets"],
            settings.compute.loss_chunk,
        )
        return jnp.sum(losses_BT * batch["weights"]), jnp.sum(batch["weights"])

    return jax.jit(
        eval_step,
        in_shardings=(shardings(config, mesh), batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )


def make_finite_check(mesh: Mesh) -> jax.stages.Wrapped:
    """The jitted check of a state: whether every number in it is one."""

    def is_finite(state: State) -> jax.Array:
        return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)]))

    return jax.jit(is_finite, out_shardings=replicated(mesh))


def _hidden(
    params: Params, config: ModelConfig, compute: Compute, settings: Settings, batch: Batch
) -> jax.Array:
    masked = settings.data.mask_documents
    return decoder.hidden_states(
        params,
        config,
        compute,
        batch["tokens"],
        batch["segments"] if masked else None,
        batch["positions"] if masked else None,
    )


def _microbatches(batch: Batch, parts: int) -> Batch:
    """[B, T] → [A, B/A, T]. Part a takes rows a, a+A, …: so every device has rows in every part."""

    def cut(x_BT: jax.Array) -> jax.Array:
        rows = x_BT.shape[0] // parts
        return x_BT.reshape(rows, parts, *x_BT.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(cut, batch)


def _guarded(old: State, new: State, metrics: Metrics, factor: float) -> State:
    """The old parameters and optimizer state where the loss is a spike or not a number."""
    guard, loss = old["guard"], metrics["loss"]
    # A mean over few steps says little: the first hundred pass unless they are not numbers.
    spike = (guard["steps"] >= 1 / (1 - GUARD_DECAY)) & (loss > factor * guard["mean_loss"])
    skip = spike | ~jnp.isfinite(loss) | ~jnp.isfinite(metrics["grad_norm"])
    steps = guard["steps"] + jnp.where(skip, 0, 1)
    # A plain mean at first, then an exponential one.
    weight = jnp.maximum(1 / jnp.maximum(steps, 1), 1 - GUARD_DECAY)
    moved = guard["mean_loss"] + weight * (loss - guard["mean_loss"])

    def choose(kept: Any, changed: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(skip, a, b), kept, changed)

    return {
        "params": choose(old["params"], new["params"]),
        "optimizer": choose(old["optimizer"], new["optimizer"]),
        "step": new["step"],
        "guard": {
            "mean_loss": jnp.where(skip, guard["mean_loss"], moved),
            "steps": steps,
            "skipped": guard["skipped"] + jnp.where(skip, 1, 0),
        },
    }
