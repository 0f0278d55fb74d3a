"""The head: hidden states to logits, the one place where a scale, a cap and a bias act.

Loss, scorer, generation, latency and `chopjax.Decoder` all come through `logits`.

Axes: X any leading ones, R rows, E what the head reads, V vocabulary (or a device's part of it).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from chopjax.models.config import ModelConfig
from chopjax.models.linear import in_company, multiply
from chopjax.models.mesh import on_processors
from chopjax.models.parameters import Params


class Head(struct.PyTreeNode):
    """cap·tanh(z / cap) for z = scale·(hidden · kernel + bias); without a cap z itself.

    The fields hold arrays, their gradients, or how they are sharded.
    """

    kernel_EV: jax.Array
    bias_V: jax.Array | None = None  # Phi, GPT-J
    scale: float = struct.field(pytree_node=False, default=1.0)  # Cohere, Granite
    cap: float | None = struct.field(pytree_node=False, default=None)  # Gemma 2 (2408.00118)
    tied: bool = struct.field(pytree_node=False, default=False)  # a table of tokens, transposed


def head_of(params: Params, config: ModelConfig) -> Head:
    """The head of a decoder. A tied one is the embedding table, transposed."""
    tied = config.tie_embeddings
    own = params.get("head", {})
    return Head(
        kernel_EV=params["embed"]["embedding"].T if tied else own["kernel"],
        bias_V=own["bias"] if config.head_bias else None,
        scale=config.logit_scale,
        cap=config.logit_cap,
        tied=tied,
    )


def logits(head: Head, hidden_XE: jax.Array) -> jax.Array:
    """[X, V]: products of the hidden states' dtype, added up and returned in float32 (float64 for
    float64 inputs). A column depends on its own part of the kernel alone, so that devices may split
    the vocabulary."""
    kernel_EV = head.kernel_EV.astype(hidden_XE.dtype)
    flat_RE = hidden_XE.reshape(-1, hidden_XE.shape[-1])
    if on_processors() and (len(flat_RE) == 1 or kernel_EV.dtype == jnp.bfloat16):
        logits_RV = _as_it_lies(flat_RE, kernel_EV, head.tied)
        logits_XV = logits_RV.reshape(*hidden_XE.shape[:-1], -1)
    else:
        logits_XV = matmul("...E,EV->...V", hidden_XE, kernel_EV)
    if head.bias_V is not None:
        logits_XV += head.bias_V.astype(logits_XV.dtype)
    if head.scale != 1:
        logits_XV *= head.scale
    if head.cap is not None:
        logits_XV = head.cap * jnp.tanh(logits_XV / head.cap)
    return logits_XV


def _as_it_lies(hidden_RE: jax.Array, kernel_EV: jax.Array, tied: bool) -> jax.Array:
    """hidden · kernel, [R, V]. A tied kernel is a table that XLA would copy to turn it (jax 0.10):
    all of it for one row, and of bfloat16 for any number."""
    if tied:
        return in_company(hidden_RE, 1, lambda rows: matmul("RE,VE->RV", rows, kernel_EV.T))
    if hidden_RE.dtype == jnp.float32:
        return multiply(hidden_RE, kernel_EV, 1, "highest")
    return in_company(hidden_RE, 1, lambda rows: matmul("RE,EV->RV", rows, kernel_EV))


def d_products(head: Head, logits_XV: jax.Array, d_logits_XV: jax.Array) -> jax.Array:
    """[X, V]: the gradient by the logits → that by hidden · kernel + bias. Of the forward pass it
    needs the logits alone."""
    if head.cap is not None:
        d_logits_XV *= 1 - jnp.square(logits_XV / head.cap)
    return d_logits_XV * head.scale if head.scale != 1 else d_logits_XV


def matmul(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """Products of float32 or narrower operands, added up in float32."""
    return jnp.einsum(
        equation,
        left,
        right,
        preferred_element_type=jnp.promote_types(jnp.float32, left.dtype),
        precision="highest" if left.dtype == jnp.float32 else None,
    )
