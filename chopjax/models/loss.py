"""Cross-entropy from hidden states; chunks.py says how.

Axes: B batch, T time, E what the head reads, V vocabulary, C tokens of a chunk, G chunks.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from chopjax.models import chunks
from chopjax.models.chunks import CHUNK
from chopjax.models.head import Head, logits


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def cross_entropy(
    hidden_BTE: jax.Array,
    head: Head,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    z_loss: float = 0.0,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array]:
    """Σ w·(nll + z_loss·log²Z) and Σ w·nll over tokens, nll = log Z - logit of the target.

    In nats, float32 (float64 for float64 inputs). Weights are the caller's to normalise: with
    1/tokens the first value is the mean loss. The head is cast to the hidden states' dtype;
    softmax and sums are float32. `chunk` is in tokens a device.
    Only the first value has a gradient, and only with respect to hidden states and head; where the
    head is not differentiated, its gradient is not computed.
    z_loss: PaLM's auxiliary loss (arXiv 2204.02311, section 5).
    """
    losses_BT, log_z_BT = _token_losses(hidden_BTE, head, targets_BT, chunk)
    nll = jnp.sum(weights_BT * losses_BT)
    return nll + z_loss * jnp.sum(weights_BT * jnp.square(log_z_BT)), nll


def token_losses(
    hidden_BTE: jax.Array, head: Head, targets_BT: jax.Array, chunk: int = CHUNK
) -> jax.Array:
    """-log p(target) of every token in nats, [B, T] float32. Forward only."""
    return _token_losses(hidden_BTE, head, targets_BT, chunk)[0]


def _token_losses(
    hidden_BTE: jax.Array, head: Head, targets_BT: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
    rows, tensor = chunks.axes(head)

    def local(
        hidden_BTE: jax.Array, head: Head, targets_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        within = chunks.for_a_loop(chunks.cast(head, hidden_BTE))

        def one(carry: None, xs: tuple[jax.Array, ...]) -> tuple[None, Any]:
            hidden_CE, targets_C = xs
            logits_CV = logits(within(), hidden_CE)
            log_z_C, target_C, _ = chunks.of_targets(logits_CV, targets_C, tensor)
            return carry, (log_z_C - target_C, log_z_C)

        cut = chunks.chunked(chunk, (hidden_BTE, targets_BT))
        _, (losses_GC, log_z_GC) = jax.lax.scan(one, None, cut)
        shape = targets_BT.shape
        return chunks.unchunked(losses_GC, shape), chunks.unchunked(log_z_GC, shape)

    in_specs = (rows, chunks.specs(head, tensor), rows)
    whole = chunks.on_mesh(local, in_specs, (rows, rows))
    losses_BT, log_z_BT = whole(hidden_BTE, head, targets_BT)
    return losses_BT, log_z_BT


def _forward(
    hidden_BTE: Any, head: Any, targets_BT: Any, weights_BT: Any, z_loss: float, chunk: int
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, Head | None]]:
    """The two sums, and the gradients of the first by hidden states and head."""

    def of_chunk(
        logits_CV: jax.Array, rows: Any, _: tuple[Head, ...], tensor: str | None
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        targets_C, weights_C = rows
        log_z_C, target_C, column_C = chunks.of_targets(logits_CV, targets_C, tensor)
        nll_C = weights_C * (log_z_C - target_C)
        total = jnp.sum(nll_C + weights_C * z_loss * jnp.square(log_z_C))
        # ∂/∂logits of w·(log Z - target + z·log²Z) = w·((1 + 2·z·log Z)·softmax - [target])
        scale_C = weights_C * (1 + 2 * z_loss * log_z_C)
        # The softmax is formed from the logits again, where it is used: a second exponential
        # costs less than a second array of [C, V].
        softmax_CV = jnp.exp(logits_CV - log_z_C[:, None])
        is_target_CV = jnp.arange(logits_CV.shape[1]) == column_C[:, None]
        d_logits_CV = softmax_CV * scale_C[:, None] - is_target_CV * weights_C[:, None]
        return (total, jnp.sum(nll_C)), d_logits_CV

    hidden = chunks.values(hidden_BTE)
    wide = jnp.promote_types(jnp.float32, hidden.dtype)
    (total, nll), gradients = chunks.sums_and_gradients(
        of_chunk,
        hidden,
        chunks.values(head),
        (targets_BT.value, weights_BT.value.astype(wide)),
        sums=2,
        chunk=chunk,
        head_moves=chunks.is_perturbed(head),
    )
    return (total, nll), gradients


def _backward(
    z_loss: float,
    chunk: int,
    gradients: tuple[jax.Array, Head | None],
    cotangents: tuple[Any, Any],
) -> tuple[jax.Array, Head | None, None, None]:
    return *chunks.scaled(gradients, cotangents[0]), None, None


cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)
