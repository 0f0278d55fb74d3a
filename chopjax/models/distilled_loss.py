"""Cross-entropy and the divergence from a teacher, from hidden states; chunks.py says how.

Neither model's logits exist whole: of a chunk of tokens both are computed, and dropped.

Axes: B batch, T time, E what a head reads, V vocabulary (or a device's part of it), K the teacher's
most probable tokens, C tokens of a chunk.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from chopjax.models import chunks
from chopjax.models.chunks import CHUNK
from chopjax.models.head import Head, logits


class Whole(struct.PyTreeNode):
    """A teacher by what its head reads. Its width may differ from the student's, its vocabulary
    does not."""

    hidden_BTE: jax.Array
    head: Head


class TopK(struct.PyTreeNode):
    """A teacher by its K most probable next tokens, distinct, and their log-probabilities at
    temperature 1; what these leave of 1 is the tail's."""

    tokens_BTK: jax.Array  # int32
    log_probs_BTK: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8))
def distilled_cross_entropy(
    hidden_BTE: jax.Array,
    head: Head,
    teacher: Whole | TopK,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    alpha: float,
    temperature: float = 1.0,
    z_loss: float = 0.0,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Σ w·((1 - α)·nll + α·τ²·KL + z_loss·log²Z), Σ w·nll and Σ w·KL over tokens, in nats.

    KL = Σ_v p·log(p / q) over the vocabulary, p the teacher's softmax(logits / τ), q the student's
    likewise (arXiv 1503.02531; the factor τ² keeps the size of the gradient). Of a TopK it is over
    K + 1 buckets, the last of them all other tokens; τ must be 1 then.
    Types, weights, chunk and z_loss are as in `cross_entropy`. Only the first value has a gradient,
    by hidden states and head of the student; the teacher has none.
    """
    if isinstance(teacher, TopK):
        assert temperature == 1, "of the tail only its mass is known"
        assert teacher.tokens_BTK.shape[-1] < head.kernel_EV.shape[1], "there must be a tail"
    terms = (alpha, temperature, z_loss, chunk)
    operands = (hidden_BTE, head, teacher, targets_BT, weights_BT)
    return _sums_and_gradients(operands, *terms, head_moves=False)[0]


def _sums_and_gradients(
    operands: Any, alpha: float, temperature: float, z_loss: float, chunk: int, head_moves: bool
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Head | None]]:
    hidden_BTE, head, teacher, targets_BT, weights_BT = operands
    wide = jnp.promote_types(jnp.float32, hidden_BTE.dtype)

    def of_chunk(
        logits_CV: jax.Array, rows: Any, heads: tuple[Head, ...], tensor: str | None
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        targets_C, weights_C, taught = rows
        log_z_C, target_C, column_C = chunks.of_targets(logits_CV, targets_C, tensor)
        if heads:
            kl_C, d_kl_CV = _from_logits(logits_CV, log_z_C, taught, heads[0], temperature, tensor)
        else:
            tokens_CK, log_p_CK = taught
            kl_C, d_kl_CV = _from_top(logits_CV, log_z_C, tokens_CK, log_p_CK, tensor)
        nll_C = log_z_C - target_C
        auxiliary_C = z_loss * jnp.square(log_z_C)
        loss_C = (1 - alpha) * nll_C + alpha * temperature**2 * kl_C + auxiliary_C
        # ∂/∂logits of (1 - α)·(log Z - target) + z·log²Z
        scale_C = (1 - alpha) + 2 * z_loss * log_z_C
        softmax_CV = jnp.exp(logits_CV - log_z_C[:, None])
        is_target_CV = jnp.arange(logits_CV.shape[1]) == column_C[:, None]
        d_loss_CV = softmax_CV * scale_C[:, None] - (1 - alpha) * is_target_CV
        d_loss_CV += alpha * temperature**2 * d_kl_CV
        sums = tuple(jnp.sum(weights_C * each_C) for each_C in (loss_C, nll_C, kl_C))
        return sums, d_loss_CV * weights_C[:, None]

    taught, heads = _rows_of(teacher)
    (total, nll, kl), gradients = chunks.sums_and_gradients(
        of_chunk,
        hidden_BTE,
        head,
        (targets_BT, weights_BT.astype(wide), taught),
        heads,
        sums=3,
        chunk=chunk,
        head_moves=head_moves,
    )
    return (total, nll, kl), gradients


def _rows_of(teacher: Whole | TopK) -> tuple[Any, tuple[Head, ...]]:
    """What of a teacher goes with the tokens, and its heads."""
    if isinstance(teacher, Whole):
        return teacher.hidden_BTE, (chunks.cast(teacher.head, teacher.hidden_BTE),)
    return (teacher.tokens_BTK, teacher.log_probs_BTK), ()


def _from_logits(
    logits_CV: jax.Array,
    log_z_C: jax.Array,
    hidden_CE: jax.Array,
    head: Head,
    temperature: float,
    tensor: str | None,
) -> tuple[jax.Array, jax.Array]:
    """KL [C] from a teacher's hidden states, and its gradient by the student's logits, which is
    (q - p) / τ."""
    theirs_CV = logits(head, hidden_CE) / temperature
    ours_CV = logits_CV / temperature
    theirs_CV -= chunks.log_partition(theirs_CV, tensor)[:, None]
    if temperature != 1:
        log_z_C = chunks.log_partition(ours_CV, tensor)
    ours_CV -= log_z_C[:, None]
    p_CV = jnp.exp(theirs_CV)
    kl_C = jnp.sum(p_CV * (theirs_CV - ours_CV), axis=1)
    if tensor:
        kl_C = jax.lax.psum(kl_C, tensor)
    return kl_C, (jnp.exp(ours_CV) - p_CV) / temperature


def _from_top(
    logits_CV: jax.Array,
    log_z_C: jax.Array,
    tokens_CK: jax.Array,
    log_p_CK: jax.Array,
    tensor: str | None,
) -> tuple[jax.Array, jax.Array]:
    """KL [C] over K + 1 buckets, and its gradient by the student's logits: q - p, with the tail's
    mass of p spread as the student spreads its own."""
    size, wide = logits_CV.shape[1], logits_CV.dtype
    # What is stored is rounded, and may add up to a little more than 1.
    p_CK = jnp.exp(log_p_CK.astype(wide))
    p_CK /= jnp.maximum(p_CK.sum(axis=1, keepdims=True), 1)
    p_tail_C = jnp.maximum(1 - p_CK.sum(axis=1), 0)

    column_CK = tokens_CK - (jax.lax.axis_index(tensor) * size if tensor else 0)
    here_CK = (column_CK >= 0) & (column_CK < size)
    inside_CK = jnp.clip(column_CK, 0, size - 1)
    top_CK = jnp.where(here_CK, jnp.take_along_axis(logits_CV, inside_CK, axis=1), 0)
    if tensor:
        top_CK = jax.lax.psum(top_CK, tensor)
    # The tail's own sum, not 1 less the others': that would be rounded away where it is small.
    rows_C1 = jnp.arange(len(logits_CV))[:, None]
    place_CK = jnp.where(here_CK, column_CK, size)  # outside: another device's, dropped
    lowest = float(np.finfo(wide).min)
    rest_CV = logits_CV.at[rows_C1, place_CK].set(lowest, mode="drop")
    log_rest_C = chunks.log_partition(rest_CV, tensor)

    kl_CK = _times_log(p_CK, top_CK - log_z_C[:, None])
    kl_C = kl_CK.sum(axis=1) + _times_log(p_tail_C, log_rest_C - log_z_C)
    p_CV = jnp.exp(rest_CV - log_rest_C[:, None]) * p_tail_C[:, None]
    p_CV = p_CV.at[rows_C1, place_CK].set(p_CK, mode="drop")
    return kl_C, jnp.exp(logits_CV - log_z_C[:, None]) - p_CV


def _times_log(p: jax.Array, log_q: jax.Array) -> jax.Array:
    """p·log(p / q), 0 where p is."""
    some = p > 0
    return jnp.where(some, p * (jnp.log(jnp.where(some, p, 1)) - jnp.where(some, log_q, 0)), 0)


def _forward(
    hidden_BTE: Any,
    head: Any,
    teacher: Any,
    targets_BT: Any,
    weights_BT: Any,
    alpha: float,
    temperature: float,
    z_loss: float,
    chunk: int,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Head | None]]:
    operands = chunks.values((hidden_BTE, head, teacher, targets_BT, weights_BT))
    moves = chunks.is_perturbed(head)
    return _sums_and_gradients(operands, alpha, temperature, z_loss, chunk, moves)


def _backward(
    alpha: float,
    temperature: float,
    z_loss: float,
    chunk: int,
    gradients: tuple[jax.Array, Head | None],
    cotangents: tuple[Any, Any, Any],
) -> tuple[jax.Array, Head | None, None, None, None]:
    return *chunks.scaled(gradients, cotangents[0]), None, None, None


distilled_cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)
