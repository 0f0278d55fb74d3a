"""Losses of the head's logits, a chunk of tokens at a time: logits never exist whole.

The gradient is formed where the loss is computed. Of every chunk the logits are computed once;
from them come the loss, the hidden states' gradient and the chunk's share of the head's gradient,
and then they are dropped. So the backward pass computes no logits again and keeps none: three
matrix products a chunk, as many as with whole logits, and two where the head is frozen.

On a mesh this runs inside a shard_map: every device works off its own rows, the head is gathered
over `fsdp` once, the vocabulary stays split over `tensor`, and the head's gradient is summed over
devices once, at the end.

Axes: B batch, T time, E what the head reads, V vocabulary (or a device's part of it), S tokens of
one device (B·T), C tokens of a chunk, G chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.sharding import PartitionSpec

from chopjax.models.head import Head, d_products, logits, matmul
from chopjax.models.linear import turned
from chopjax.models.mesh import BATCH_AXES, on_processors

CHUNK = 512
ACCELERATOR_CHUNK = 2048  # larger products, and fewer passes over the head's gradient

# (logits [C, V], the chunk's rows, the other heads, the vocabulary's mesh axis) → (sums over the
# chunk's tokens, the gradient [C, V] of the first sum by the logits).
OfChunk = Callable[
    [jax.Array, Any, tuple[Head, ...], str | None], tuple[tuple[jax.Array, ...], jax.Array]
]


def chunk_of(asked: int, backend: str | None = None) -> int:
    """Tokens of a chunk; asked is 0 for what suits the backend, by default this one."""
    on_processor = (backend or jax.default_backend()) == "cpu"
    return asked or (CHUNK if on_processor else ACCELERATOR_CHUNK)


def sums_and_gradients(
    of_chunk: OfChunk,
    hidden_BTE: jax.Array,
    head: Head,
    rows: Any,
    others: tuple[Head, ...] = (),
    *,
    sums: int,
    chunk: int,
    head_moves: bool = True,
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, Head | None]]:
    """So many sums over all tokens, and the gradients of the first by hidden states and head.

    rows: a tree of arrays [B, T, …], given to of_chunk as [C, …]. others: heads that have no
    gradient, of the same vocabulary. Sums are float32 (float64 for float64 hidden states), and the
    head is cast to the hidden states' dtype. head_moves: whether the head's gradient is wanted;
    None stands for it otherwise.
    """
    batch, tensor = axes(head)
    mesh = jax.sharding.get_abstract_mesh()
    # Where there is nothing to sum, a reduce-scatter would be a copy of the head's gradient.
    shared = not mesh.empty and any(mesh.shape[axis] > 1 for axis in BATCH_AXES)
    split_E = shared and head.kernel_EV.shape[0] % mesh.shape["fsdp"] == 0

    def local(
        hidden_BTE: jax.Array, head: Head, rows: Any, others: tuple[Head, ...]
    ) -> tuple[tuple[jax.Array, ...], jax.Array, Head | None]:
        wide = jnp.promote_types(jnp.float32, hidden_BTE.dtype)
        own, theirs = for_a_loop(cast(head, hidden_BTE)), [for_a_loop(other) for other in others]

        def one(carry: Any, xs: Any) -> tuple[Any, jax.Array]:
            totals, d_head = carry
            hidden_CE, rows_C = xs
            narrow = own()
            logits_CV = logits(narrow, hidden_CE)
            taught = tuple(each() for each in theirs)
            new, d_logits_CV = of_chunk(logits_CV, rows_C, taught, tensor)
            totals = tuple(total + one for total, one in zip(totals, new, strict=True))
            d_logits_CV = d_products(head, logits_CV, d_logits_CV).astype(hidden_CE.dtype)
            d_hidden_CE = _d_hidden(d_logits_CV, narrow)
            if d_head is not None:
                new_EV = matmul("EC,CV->EV", turned(hidden_CE), d_logits_CV)
                if hidden_CE.dtype == jnp.bfloat16 and on_processors():
                    # Of a single chunk XLA would turn the product round to save turning its result
                    # for a tied table, into one of bfloat16 that processors lack (jax 0.10).
                    new_EV = jax.lax.optimization_barrier(new_EV)
                d_kernel_EV = d_head.kernel_EV + new_EV
                d_head = d_head.replace(kernel_EV=d_kernel_EV)
                if head.bias_V is not None:
                    d_head = d_head.replace(bias_V=d_head.bias_V + d_logits_CV.sum(0, wide))
            return (totals, d_head), d_hidden_CE

        zeros = (jnp.zeros((), wide),) * sums
        d_head = None
        if head_moves:
            d_head = jax.tree.map(lambda x: jnp.zeros(x.shape, wide), head)
        chunks = chunked(chunk, (hidden_BTE, rows))
        (totals, d_head), d_hidden_GCE = jax.lax.scan(one, (zeros, d_head), chunks)
        d_hidden_BTE = unchunked(d_hidden_GCE, hidden_BTE.shape)
        if shared:
            totals, d_head = _summed(totals, d_head, split_E)
        if tensor:
            d_hidden_BTE = jax.lax.psum(d_hidden_BTE, tensor)
        if d_head is not None:
            d_head = jax.tree.map(lambda d, x: d.astype(x.dtype), d_head, head)
        return totals, d_hidden_BTE.astype(hidden_BTE.dtype), d_head

    whole, split = PartitionSpec(), specs(head, tensor)
    d_specs = split.replace(kernel_EV=PartitionSpec("fsdp" if split_E else None, tensor))
    in_specs = (batch, split, batch, tuple(specs(other, tensor) for other in others))
    out_specs = ((whole,) * sums, batch, d_specs if head_moves else None)
    totals, d_hidden_BTE, d_head = on_mesh(local, in_specs, out_specs)(
        hidden_BTE, head, rows, others
    )
    return totals, (d_hidden_BTE, d_head)


def _d_hidden(d_logits_CV: jax.Array, head: Head) -> jax.Array:
    """[C, E]. In bfloat16 processors are slow at products whose left side is turned."""
    if d_logits_CV.dtype != jnp.bfloat16 or not on_processors():
        return matmul("EV,CV->EC", head.kernel_EV, d_logits_CV).T
    if head.tied:
        return matmul("CV,VE->CE", d_logits_CV, head.kernel_EV.T)
    return matmul("CV,EV->CE", d_logits_CV, head.kernel_EV)


def _summed(
    totals: tuple[jax.Array, ...], d_head: Head | None, split_E: bool
) -> tuple[tuple[jax.Array, ...], Head | None]:
    """Over the devices that share the batch; of the kernel's gradient each keeps its part."""
    totals = jax.lax.psum(totals, BATCH_AXES)
    if d_head is None:
        return totals, None
    d_kernel_EV, d_bias_V = d_head.kernel_EV, jax.lax.psum(d_head.bias_V, BATCH_AXES)
    if split_E:
        d_kernel_EV = jax.lax.psum_scatter(d_kernel_EV, "fsdp", tiled=True)
    d_kernel_EV = jax.lax.psum(d_kernel_EV, ("slice", "data") if split_E else BATCH_AXES)
    return totals, d_head.replace(kernel_EV=d_kernel_EV, bias_V=d_bias_V)


def scaled(gradients: tuple[jax.Array, Head | None], by: Any) -> Any:
    """The gradients times a cotangent, float32, which must not widen narrower ones."""
    if isinstance(by, SymbolicZero):
        return None, None
    return jax.tree.map(lambda d: (d * by).astype(d.dtype), gradients)


def values(tree: Any) -> Any:
    """What a custom_vjp's forward rule with symbolic_zeros is given, as plain arrays."""
    return jax.tree.map(lambda leaf: leaf.value, tree, is_leaf=_is_primal)


def is_perturbed(tree: Any) -> bool:
    """Likewise: whether any of it is differentiated."""
    return any(leaf.perturbed for leaf in jax.tree.leaves(tree, is_leaf=_is_primal))


def _is_primal(node: Any) -> bool:
    return isinstance(node, CustomVJPPrimal)


# ---------------------------------------------------------------------------- Of one chunk's logits


def log_partition(logits_CV: jax.Array, tensor: str | None) -> jax.Array:
    """log Z [C], over the whole vocabulary."""
    maximum_C = logits_CV.max(axis=1)
    if tensor:
        maximum_C = jax.lax.pmax(maximum_C, tensor)
    z_C = _exponentials(logits_CV, maximum_C)
    if tensor:
        z_C = jax.lax.psum(z_C, tensor)
    return maximum_C + jnp.log(z_C)


def _exponentials(logits_CV: jax.Array, maximum_C: jax.Array) -> jax.Array:
    """Their sum [C], as a product with ones: processors take 2.5 times as long to add them up one
    by one. Equal logits have equal sums wherever one is asked for."""
    exp_CV = jnp.exp(logits_CV - maximum_C[:, None])
    return jnp.dot(exp_CV, jnp.ones(exp_CV.shape[1], exp_CV.dtype), precision="highest")


def of_targets(
    logits_CV: jax.Array, targets_C: jax.Array, tensor: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """log Z [C], the target's logit [C] and its column [C].

    V is this device's part of the vocabulary; a column outside of 0 … V-1 is another device's.
    """
    size, column_C, maximum_C = logits_CV.shape[1], targets_C, logits_CV.max(axis=1)
    if tensor:
        column_C -= jax.lax.axis_index(tensor) * size
        maximum_C = jax.lax.pmax(maximum_C, tensor)
    here_C = (column_C >= 0) & (column_C < size)
    inside_C = jnp.clip(column_C, 0, size - 1)
    target_C = jnp.take_along_axis(logits_CV, inside_C[:, None], axis=1)[:, 0]
    z_C = _exponentials(logits_CV, maximum_C)
    sums_2C = jnp.stack([z_C, jnp.where(here_C, target_C, 0)])
    if tensor:
        sums_2C = jax.lax.psum(sums_2C, tensor)
    z_C, target_C = sums_2C
    return maximum_C + jnp.log(z_C), target_C, column_C


# --------------------------------------------------------------------------- Chunks and the mesh


def cast(head: Head, hidden_BTE: jax.Array) -> Head:
    """The kernel in the hidden states' dtype, once for all chunks."""
    return head.replace(kernel_EV=head.kernel_EV.astype(hidden_BTE.dtype))


def for_a_loop(head: Head) -> Callable[[], Head]:
    """What gives the head within a loop over chunks. On processors a tied table of bfloat16 goes
    into the loop as it lies: turned before, it would be copied to multiply with it."""
    if not head.tied or head.kernel_EV.dtype != jnp.bfloat16 or not on_processors():
        return lambda: head
    table_VE = head.kernel_EV.T
    return lambda: head.replace(kernel_EV=table_VE.T)


def specs(head: Head, tensor: str | None) -> Any:
    """How a head is split: its vocabulary over `tensor`."""
    bias = None if head.bias_V is None else PartitionSpec(tensor)
    return head.replace(kernel_EV=PartitionSpec(None, tensor), bias_V=bias)


def axes(head: Head) -> tuple[PartitionSpec, str | None]:
    """The spec of rows, and the mesh axis over which the vocabulary is split, if it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return PartitionSpec(), None
    size = mesh.shape["tensor"]
    split = size > 1 and head.kernel_EV.shape[1] % size == 0
    return PartitionSpec(BATCH_AXES), "tensor" if split else None


def on_mesh(local: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`local` on every device's part; as it is where no mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local
    return jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def chunked(chunk: int, tree_BT: Any) -> Any:
    """[B, T, …] → [G, C, …], filled up with zeros where C does not divide B·T."""
    B, T = jax.tree.leaves(tree_BT)[0].shape[:2]
    count = -(-B * T // chunk)
    size = -(-B * T // count)

    def cut(x_BT: jax.Array) -> jax.Array:
        x_S = x_BT.reshape(B * T, *x_BT.shape[2:])
        padding = [(0, count * size - B * T)] + [(0, 0)] * (x_S.ndim - 1)
        return jnp.pad(x_S, padding).reshape(count, size, *x_S.shape[1:])

    return jax.tree.map(cut, tree_BT)


def unchunked(x_GC: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `chunked`, for one array of the given shape."""
    tokens = shape[0] * shape[1]
    return x_GC.reshape(-1, *shape[2:])[:tokens].reshape(shape)
