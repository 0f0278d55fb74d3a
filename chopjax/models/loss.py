"""Cross-entropy from hidden states, a chunk of tokens at a time: logits never exist whole.

The gradient is formed where the loss is computed. Of every chunk the logits are computed once;
from them come the loss, the hidden states' gradient and the chunk's share of the head's gradient,
and then they are dropped. So the backward pass computes no logits again and keeps none: three
matrix products a chunk, as many as with whole logits.

On a mesh this runs inside a shard_map: every device works off its own rows, the head is gathered
over `fsdp` once, the vocabulary stays split over `tensor`, and the head's gradient is summed over
devices once, at the end.

Axes: B batch, T time, E what the head reads, V vocabulary, S tokens of one device (B·T), C tokens
of a chunk, G chunks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec

from chopjax.models.head import Head, d_products, logits, matmul
from chopjax.models.mesh import BATCH_AXES

CHUNK = 512


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
    Only the first value has a gradient, and only with respect to hidden states and head.
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
    rows, tensor = _axes(head)

    def local(
        hidden_BTE: jax.Array, head: Head, targets_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        head = _cast(head, hidden_BTE)

        def one(carry: None, xs: tuple[jax.Array, ...]) -> tuple[None, Any]:
            hidden_CE, targets_C = xs
            _, log_z_C, target_C, _ = _logits(hidden_CE, targets_C, head, tensor)
            return carry, (log_z_C - target_C, log_z_C)

        chunks = _chunked(chunk, hidden_BTE, targets_BT)
        _, (losses_GC, log_z_GC) = jax.lax.scan(one, None, chunks)
        shape = targets_BT.shape
        return _unchunked(losses_GC, shape), _unchunked(log_z_GC, shape)

    whole = _on_mesh(local, (rows, _specs(head, tensor), rows), (rows, rows))
    losses_BT, log_z_BT = whole(hidden_BTE, head, targets_BT)
    return losses_BT, log_z_BT


def _forward(
    hidden_BTE: jax.Array,
    head: Head,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    z_loss: float,
    chunk: int,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, Head | None]]:
    """The two sums, and the gradients of the first by hidden states and head.

    Every leaf comes as jax.custom_derivatives.CustomVJPPrimal. Of a head that is not differentiated
    (it is frozen under adapters) there is no gradient, which is one product of three.
    """
    trains_head = any(leaf.perturbed for leaf in jax.tree.leaves(head))
    hidden_BTE, head, targets_BT, weights_BT = jax.tree.map(
        lambda leaf: leaf.value, (hidden_BTE, head, targets_BT, weights_BT)
    )
    rows, tensor = _axes(head)
    mesh = jax.sharding.get_abstract_mesh()
    # Where there is nothing to sum, a reduce-scatter would be a copy of the head's gradient.
    shared = not mesh.empty and any(mesh.shape[axis] > 1 for axis in BATCH_AXES)
    split_E = shared and head.kernel_EV.shape[0] % mesh.shape["fsdp"] == 0

    def local(
        hidden_BTE: jax.Array, head: Head, targets_BT: jax.Array, weights_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, Head | None]:
        wide = jnp.promote_types(jnp.float32, hidden_BTE.dtype)
        narrow = _cast(head, hidden_BTE)

        def one(sums: Any, xs: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
            total, nll, d_head = sums
            hidden_CE, targets_C, weights_C = xs
            logits_CV, log_z_C, target_C, column_C = _logits(hidden_CE, targets_C, narrow, tensor)
            nll_C = weights_C * (log_z_C - target_C)
            total += jnp.sum(nll_C + weights_C * z_loss * jnp.square(log_z_C))
            # ∂/∂logits of w·(log Z - target + z·log²Z) = w·((1 + 2·z·log Z)·softmax - [target])
            scale_C = weights_C * (1 + 2 * z_loss * log_z_C)
            # The softmax is formed from the logits again, where it is used: a second exponential
            # costs less than a second array of [C, V].
            softmax_CV = jnp.exp(logits_CV - log_z_C[:, None])
            is_target_CV = jnp.arange(logits_CV.shape[1]) == column_C[:, None]
            d_logits_CV = softmax_CV * scale_C[:, None] - is_target_CV * weights_C[:, None]
            d_logits_CV = d_products(head, logits_CV, d_logits_CV).astype(hidden_CE.dtype)
            d_hidden_CE = matmul("EV,CV->EC", narrow.kernel_EV, d_logits_CV).T
            if d_head is None:
                return (total, nll + jnp.sum(nll_C), None), d_hidden_CE
            # Transposed here and not inside the product, which processors are slow at.
            hidden_EC = jax.lax.optimization_barrier(hidden_CE.T)
            d_kernel_EV = d_head.kernel_EV + matmul("EC,CV->EV", hidden_EC, d_logits_CV)
            d_head = d_head.replace(kernel_EV=d_kernel_EV)
            if head.bias_V is not None:
                d_head = d_head.replace(bias_V=d_head.bias_V + d_logits_CV.sum(0, wide))
            return (total, nll + jnp.sum(nll_C), d_head), d_hidden_CE

        zero = jnp.zeros((), wide)
        d_head = jax.tree.map(lambda x: jnp.zeros(x.shape, wide), head) if trains_head else None
        start = (zero, zero, d_head)
        chunks = _chunked(chunk, hidden_BTE, targets_BT, weights_BT.astype(wide))
        (total, nll, d_head), d_hidden_GCE = jax.lax.scan(one, start, chunks)
        d_hidden_BTE = _unchunked(d_hidden_GCE, hidden_BTE.shape)
        if shared:
            total, nll = jax.lax.psum((total, nll), BATCH_AXES)
        if shared and d_head is not None:
            d_bias_V = jax.lax.psum(d_head.bias_V, BATCH_AXES)
            d_kernel_EV = d_head.kernel_EV
            if split_E:
                d_kernel_EV = jax.lax.psum_scatter(d_kernel_EV, "fsdp", tiled=True)
            d_kernel_EV = jax.lax.psum(d_kernel_EV, ("slice", "data") if split_E else BATCH_AXES)
            d_head = d_head.replace(kernel_EV=d_kernel_EV, bias_V=d_bias_V)
        if tensor:
            d_hidden_BTE = jax.lax.psum(d_hidden_BTE, tensor)
        if d_head is not None:
            d_head = jax.tree.map(lambda d, x: d.astype(x.dtype), d_head, head)
        return total, nll, d_hidden_BTE.astype(hidden_BTE.dtype), d_head

    whole, specs = PartitionSpec(), _specs(head, tensor)
    split = PartitionSpec("fsdp" if split_E else None, tensor)
    d_specs = specs.replace(kernel_EV=split) if trains_head else None
    total, nll, d_hidden_BTE, d_head = _on_mesh(
        local, (rows, specs, rows, rows), (whole, whole, rows, d_specs)
    )(hidden_BTE, head, targets_BT, weights_BT)
    return (total, nll), (d_hidden_BTE, d_head)


def _backward(
    z_loss: float,
    chunk: int,
    gradients: tuple[jax.Array, Head | None],
    cotangents: tuple[Any, Any],
) -> tuple[jax.Array | None, Head | None, None, None]:
    by = cotangents[0]  # float32, which must not widen narrower gradients
    if isinstance(by, SymbolicZero):
        return None, None, None, None
    return *jax.tree.map(lambda d: (d * by).astype(d.dtype), gradients), None, None


cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)


def _logits(
    hidden_CE: jax.Array, targets_C: jax.Array, head: Head, tensor: str | None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Logits [C, V], log Z [C], the target's logit [C] and its column [C].

    V is this device's part of the vocabulary; a column outside of 0 … V-1 is another device's.
    """
    logits_CV = logits(head, hidden_CE)
    size, column_C, maximum_C = logits_CV.shape[1], targets_C, logits_CV.max(axis=1)
    if tensor:
        column_C -= jax.lax.axis_index(tensor) * size
        maximum_C = jax.lax.pmax(maximum_C, tensor)
    here_C = (column_C >= 0) & (column_C < size)
    inside_C = jnp.clip(column_C, 0, size - 1)
    target_C = jnp.take_along_axis(logits_CV, inside_C[:, None], axis=1)[:, 0]
    exp_CV = jnp.exp(logits_CV - maximum_C[:, None])
    sums_2C = jnp.stack([exp_CV.sum(axis=1), jnp.where(here_C, target_C, 0)])
    if tensor:
        sums_2C = jax.lax.psum(sums_2C, tensor)
    z_C, target_C = sums_2C
    return logits_CV, maximum_C + jnp.log(z_C), target_C, column_C


def _cast(head: Head, hidden_BTE: jax.Array) -> Head:
    """The kernel in the hidden states' dtype, once for all chunks."""
    return head.replace(kernel_EV=head.kernel_EV.astype(hidden_BTE.dtype))


def _specs(head: Head, tensor: str | None) -> Any:
    """How a head is split: its vocabulary over `tensor`."""
    bias = None if head.bias_V is None else PartitionSpec(tensor)
    return head.replace(kernel_EV=PartitionSpec(None, tensor), bias_V=bias)


def _axes(head: Head) -> tuple[PartitionSpec, str | None]:
    """The spec of rows, and the mesh axis over which the vocabulary is split, if it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return PartitionSpec(), None
    size = mesh.shape["tensor"]
    split = size > 1 and head.kernel_EV.shape[1] % size == 0
    return PartitionSpec(BATCH_AXES), "tensor" if split else None


def _on_mesh(local: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local
    return jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _chunked(chunk: int, *arrays_BT: jax.Array) -> tuple[jax.Array, ...]:
    """[B, T, …] → [G, C, …], filled up with zeros where C does not divide B·T."""
    tokens = arrays_BT[0].shape[0] * arrays_BT[0].shape[1]
    count = -(-tokens // chunk)
    size = -(-tokens // count)

    def cut(x_BT: jax.Array) -> jax.Array:
        x_S = x_BT.reshape(tokens, *x_BT.shape[2:])
        padding = [(0, count * size - tokens)] + [(0, 0)] * (x_S.ndim - 1)
        return jnp.pad(x_S, padding).reshape(count, size, *x_S.shape[1:])

    return tuple(cut(x_BT) for x_BT in arrays_BT)


def _unchunked(x_GC: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of _chunked, for one array of the given shape."""
    tokens = shape[0] * shape[1]
    return x_GC.reshape(-1, *shape[2:])[:tokens].reshape(shape)
