"""Kernels in four or eight bits: codes, scales, and the product with them. What the formats are is
in formats.py.

Axes of a kernel: leading ones (L, and X where there are experts), inputs, outputs. In memory the
inputs are one axis I, which comes first, and the outputs one axis O. Two four-bit codes share a
byte: of a block's first half in the high half, of its others in the low one. So blocks and the
halves of bytes lie across the lanes of the hardware, and unpacking moves no number from lane to
lane: with the inputs last, or with neighbours in a byte, a TPU writes every kernel out four times
in float32. Both axes can be split over devices. Where nf4's 64 does not divide I, blocks cross
rows, and the codes are one row, in the order of [out, in].
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from chopjax.models import parameters
from chopjax.models.config import ModelConfig
from chopjax.models.formats import FORMATS, NF4, ZERO, Form, Kind, forms
from chopjax.models.linear import contract, multiply, precision_in_force
from chopjax.models.mesh import partition, shardings
from chopjax.models.parameters import Params


class Quantized(struct.PyTreeNode):
    """A weight node (models/linear.py): a kernel that is read and never trained.

    The fields hold arrays, their shapes, or how they are sharded.
    """

    codes: Any
    scales: Any
    form: Form = struct.field(pytree_node=False)

    def product(self, x: jax.Array, contracted: int) -> jax.Array:
        """The last `contracted` axes of x times the kernel, in x's dtype. Its gradient goes to x
        alone; the backward pass unpacks the codes again."""
        leading = x.shape[: x.ndim - contracted]
        x = x.reshape(*leading, math.prod(self.form.inputs))
        return _product(x, self, precision_in_force()).reshape(*leading, *self.form.outputs)

    def unpacked(self, dtype: Any) -> jax.Array:
        """The values that the codes stand for: [leading…, I, O], computed in float32."""
        form = self.form
        codes: jax.Array = self.codes
        scales: jax.Array = self.scales
        if not form.block:
            return (codes.astype(jnp.float32) * scales[..., None, :]).astype(dtype)
        if form.by_row:
            return _values(codes, scales, form).astype(dtype)
        flat = _values(codes[..., None], scales[..., None], form)[..., : form.numbers, 0]
        rows = flat.reshape(*flat.shape[:-1], math.prod(form.outputs), math.prod(form.inputs))
        return rows.swapaxes(-1, -2).astype(dtype)

    def kernel(self, dtype: Any) -> jax.Array:
        """The same in a kernel's own layout: [leading…, inputs…, outputs…]."""
        wide = self.unpacked(dtype)
        return wide.reshape(*wide.shape[:-2], *self.form.inputs, *self.form.outputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, node: Quantized, precision: str | None) -> jax.Array:
    """x [batch…, I] times the kernel: [batch…, O]."""
    return multiply(x, node.unpacked(x.dtype), 1, precision)


def _forward(x: jax.Array, node: Quantized, precision: str | None) -> tuple[jax.Array, Quantized]:
    return _product(x, node, precision), node


def _backward(precision: str | None, node: Quantized, d_y: jax.Array) -> tuple[jax.Array, None]:
    wide = node.unpacked(d_y.dtype)
    return contract(d_y, wide, ((d_y.ndim - 1,), (1,)), precision), None


_product.defvjp(_forward, _backward)


def _values(codes: jax.Array, scales: jax.Array, form: Form) -> jax.Array:
    """codes [leading…, I/2, O], scales [leading…, I/block, O] → float32 [leading…, I, O]."""
    *leading, blocks, makes = scales.shape
    pairs = codes.reshape(*leading, blocks, form.block // 2, makes)
    halves = jnp.stack([pairs >> 4, pairs & 15], axis=-3)
    wide = _levels(halves) if form.kind == "nf4" else halves.astype(jnp.float32) - ZERO
    values = wide * scales[..., None, None, :]
    return values.reshape(*leading, blocks * form.block, makes)


def _levels(codes: jax.Array) -> jax.Array:
    """NF4's code → one of its 16 values. A tree of choices by the code's bits: no hardware here
    looks numbers up in a table as fast."""
    level: list[Any] = [jnp.float32(value) for value in NF4]
    for bit in range(4):
        is_set = (codes & (1 << bit)) != 0
        level = [jnp.where(is_set, high, low) for low, high in zip(*[iter(level)] * 2, strict=True)]
    values: jax.Array = level[0]
    return values


# -------------------------------------------------------------------------- Where on a mesh


def abstract(config: ModelConfig, path: str, form: Form, mesh: Mesh) -> Quantized:
    """Shapes and shardings of a quantized kernel.

    Outputs lie as the kernel's own axes do, and so do the inputs where every device gets whole
    blocks; else they are whole on every device, as kernels are whose blocks cross rows.
    """
    axes, size = parameters.kernels(config)[path], parameters.sizes(config)
    spec = partition(" ".join(sum(axes, ())), size, mesh.shape)
    first = len(axes.leading) + len(axes.inputs)
    leading = spec[: len(axes.leading)]
    # Of several axes that are one here, the first is the one that is split: heads, not their width.
    reads, makes = spec[len(axes.leading)], spec[first]
    if reads and math.prod(form.inputs) % (max(form.block, 1) * mesh.shape[reads]):
        reads = None
    codes_way = scales_way = PartitionSpec(*leading)
    if form.by_row:
        codes_way = PartitionSpec(*leading, reads, makes)
        own = (reads, makes) if form.block else (makes,)
        scales_way = PartitionSpec(*leading, *own)
    before = tuple(size[a] for a in axes.leading)
    dtypes = FORMATS[form.kind].codes, np.dtype(np.float32)
    codes_like, scales_like = (
        jax.ShapeDtypeStruct((*before, *shape), dtype, sharding=NamedSharding(mesh, way))
        for shape, dtype, way in zip(form.shapes(), dtypes, (codes_way, scales_way), strict=True)
    )
    return Quantized(codes_like, scales_like, form)


def places(config: ModelConfig, kind: Kind, mesh: Mesh, block: int | None = None) -> Params:
    """Where every parameter lies of a model whose blocks' kernels are quantized, as `load` takes
    it: Shardings, and a Quantized of two for a kernel. block: of a checkpoint that has its own.
    Raises UserError where a width does not fit."""
    flat: dict[str, Any] = flatten_dict(shardings(config, mesh), sep="/")
    for path, form in forms(config, kind, block).items():
        flat[path] = jax.tree.map(lambda of: of.sharding, abstract(config, path, form, mesh))
    nested: Params = unflatten_dict(flat, sep="/")
    return nested


def kind_of(params: Params) -> Kind | None:
    """The format that kernels are in; None where none is quantized."""
    leaves = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, Quantized))
    return next((leaf.form.kind for leaf in leaves if isinstance(leaf, Quantized)), None)
