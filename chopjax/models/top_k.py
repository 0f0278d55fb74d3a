"""The likeliest tokens from hidden states, a chunk of tokens at a time (chunks.py).

Axes: B batch, T time, E what the head reads, V vocabulary (or a device's part of it), C tokens of a
chunk, K likeliest tokens, N devices that share the vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from chopjax.models import chunks
from chopjax.models.chunks import CHUNK
from chopjax.models.head import Head, logits


def top_k(
    hidden_BTE: jax.Array, head: Head, k: int, chunk: int = CHUNK
) -> tuple[jax.Array, jax.Array]:
    """The k likeliest next tokens of every token, likeliest first, of equal ones the lower id:
    ids [B, T, K] int32, and their log-probabilities over the whole vocabulary, in nats, float32.

    k is less than the vocabulary. `chunk` is in tokens a device. Has no gradient.
    """
    rows, tensor = chunks.axes(head)

    def local(hidden_BTE: jax.Array, head: Head) -> tuple[jax.Array, jax.Array]:
        within = chunks.for_a_loop(chunks.cast(head, hidden_BTE))

        def one(carry: None, hidden_CE: jax.Array) -> tuple[None, Any]:
            logits_CV = logits(within(), hidden_CE)
            log_z_C = chunks.log_partition(logits_CV, tensor)
            best_CK, ids_CK = jax.lax.top_k(logits_CV, min(k, logits_CV.shape[1]))
            if tensor:
                best_CK, ids_CK = _of_all(best_CK, ids_CK, logits_CV.shape[1], k, tensor)
            return carry, (ids_CK, (best_CK - log_z_C[:, None]).astype(jnp.float32))

        _, found = jax.lax.scan(one, None, chunks.chunked(chunk, hidden_BTE))
        shape = (*hidden_BTE.shape[:2], k)
        ids_BTK, log_probs_BTK = (chunks.unchunked(x_GCK, shape) for x_GCK in found)
        return ids_BTK, log_probs_BTK

    whole = chunks.on_mesh(local, (rows, chunks.specs(head, tensor)), (rows, rows))
    ids_BTK, log_probs_BTK = whole(hidden_BTE, head)
    return ids_BTK, log_probs_BTK


def _of_all(
    best_CK: jax.Array, ids_CK: jax.Array, columns: int, k: int, tensor: str
) -> tuple[jax.Array, jax.Array]:
    """The likeliest of those that each part of the vocabulary has. Parts come in the order of ids,
    so that of equal ones the lower id stays first."""
    ids_CK += jax.lax.axis_index(tensor) * columns
    best_CNK = jax.lax.all_gather(best_CK, tensor, axis=1, tiled=True)
    ids_CNK = jax.lax.all_gather(ids_CK, tensor, axis=1, tiled=True)
    best_CK, places_CK = jax.lax.top_k(best_CNK, k)
    return best_CK, jnp.take_along_axis(ids_CNK, places_CK, axis=1)
