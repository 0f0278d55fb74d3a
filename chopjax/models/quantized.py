"""Kernels in four or eight bits: codes, scales, and the product with them.

    nf4   QLoRA's NormalFloat (arXiv 2305.14314, section 3 and appendix E). The matrix as a
          checkpoint's Linear has it, [out, in], is one row of numbers; of every 64 of them the
          largest magnitude is kept in float32, and of each number, divided by that, the nearest of
          16 values. The same codes and scales as bitsandbytes'; scales are not quantized
          themselves. Two codes a byte: of a block's first 32 in the high half, of its others in the
          low one.
    int8  a scale for every output, its largest magnitude / 127, and the nearest multiple of it.

Axes of a kernel: leading ones (L, and X where there are experts), inputs, outputs. In memory the
inputs are one axis I, which comes first, and the outputs one axis O. So blocks of 64 and the halves
of bytes lie across the lanes of the hardware, and unpacking moves no number from lane to lane:
with the inputs last, or with neighbours in a byte, a TPU writes every kernel out four times in
float32. Both axes can be split over devices. Where 64 does not divide I, blocks cross rows, and the
codes are one row, in the order of [out, in].
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from chopjax.models import parameters
from chopjax.models.config import ModelConfig
from chopjax.models.linear import contract, precision_in_force
from chopjax.models.mesh import partition

Kind = Literal["nf4", "int8"]
BLOCK = 64  # numbers that share one scale
# The quantiles of a normal distribution, in float32 as in the paper's appendix E.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_CHUNK = 2**20  # numbers that are quantized at a time: they stay in the processor's cache


class Form(NamedTuple):
    """Which kernel it is that was quantized. Sizes are without the leading axes."""

    kind: Kind
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def numbers(self) -> int:
        return math.prod(self.inputs) * math.prod(self.outputs)

    @property
    def by_row(self) -> bool:
        """Whether a row of inputs is whole blocks; else all of the kernel is one row."""
        return self.kind == "int8" or math.prod(self.inputs) % BLOCK == 0

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of codes and of scales, without the leading axes."""
        reads, makes = math.prod(self.inputs), math.prod(self.outputs)
        if self.kind == "int8":
            return (reads, makes), (makes,)
        if self.by_row:
            return (reads // 2, makes), (reads // BLOCK, makes)
        blocks = -(-self.numbers // BLOCK)  # the last one is filled up
        return (blocks * BLOCK // 2,), (blocks,)


def code_dtype(kind: Kind) -> np.dtype[Any]:
    return np.dtype(np.int8 if kind == "int8" else np.uint8)


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
        if form.kind == "int8":
            return (codes.astype(jnp.float32) * scales[..., None, :]).astype(dtype)
        if form.by_row:
            return _nf4_values(codes, scales).astype(dtype)
        flat = _nf4_values(codes[..., None], scales[..., None])[..., : form.numbers, 0]
        rows = flat.reshape(*flat.shape[:-1], math.prod(form.outputs), math.prod(form.inputs))
        return rows.swapaxes(-1, -2).astype(dtype)

    def kernel(self, dtype: Any) -> jax.Array:
        """The same in a kernel's own layout: [leading…, inputs…, outputs…]."""
        wide = self.unpacked(dtype)
        return wide.reshape(*wide.shape[:-2], *self.form.inputs, *self.form.outputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, node: Quantized, precision: str | None) -> jax.Array:
    """x [batch…, I] times the kernel: [batch…, O]."""
    return contract(x, node.unpacked(x.dtype), 1, precision)


def _forward(x: jax.Array, node: Quantized, precision: str | None) -> tuple[jax.Array, Quantized]:
    return _product(x, node, precision), node


def _backward(precision: str | None, node: Quantized, d_y: jax.Array) -> tuple[jax.Array, None]:
    wide = node.unpacked(d_y.dtype)
    return contract(d_y, wide, ((d_y.ndim - 1,), (1,)), precision), None


_product.defvjp(_forward, _backward)


def _nf4_values(codes: jax.Array, scales: jax.Array) -> jax.Array:
    """codes [leading…, I/2, O], scales [leading…, I/64, O] → values [leading…, I, O], float32."""
    *leading, blocks, makes = scales.shape
    pairs = codes.reshape(*leading, blocks, BLOCK // 2, makes)
    halves = jnp.stack([pairs >> 4, pairs & 15], axis=-3)
    values = _levels(halves) * scales[..., None, None, :]
    return values.reshape(*leading, blocks * BLOCK, makes)


def _levels(codes: jax.Array) -> jax.Array:
    """Code → one of the 16 values. A tree of choices by the code's bits: no hardware here looks
    numbers up in a table as fast."""
    level: list[Any] = [jnp.float32(value) for value in NF4]
    for bit in range(4):
        is_set = (codes & (1 << bit)) != 0
        level = [jnp.where(is_set, high, low) for low, high in zip(*[iter(level)] * 2, strict=True)]
    values: jax.Array = level[0]
    return values


# ----------------------------------------------------------- Which kernels, and where on a mesh


def forms(config: ModelConfig, kind: Kind) -> dict[str, Form]:
    """Path → form, of every kernel of the blocks."""
    size = parameters.sizes(config)
    return {
        path: Form(kind, tuple(size[a] for a in axes.inputs), tuple(size[a] for a in axes.outputs))
        for path, axes in parameters.kernels(config).items()
    }


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
    if reads and math.prod(form.inputs) % (BLOCK * mesh.shape[reads]):
        reads = None
    codes_way = scales_way = PartitionSpec(*leading)
    if form.by_row:
        codes_way = PartitionSpec(*leading, reads, makes)
        own = (reads, makes) if form.kind == "nf4" else (makes,)
        scales_way = PartitionSpec(*leading, *own)
    before = tuple(size[a] for a in axes.leading)
    dtypes = code_dtype(form.kind), np.dtype(np.float32)
    codes_like, scales_like = (
        jax.ShapeDtypeStruct((*before, *shape), dtype, sharding=NamedSharding(mesh, way))
        for shape, dtype, way in zip(form.shapes(), dtypes, (codes_way, scales_way), strict=True)
    )
    return Quantized(codes_like, scales_like, form)


# ------------------------------------------------------------------- Quantizing, without a device


def quantize(rows: np.ndarray, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of one matrix [O, I], as a checkpoint's Linear has it, of any float type; of
    one shape with `Form.shapes`. Besides the result, host memory holds a few million bytes, and the
    matrix again where blocks cross rows."""
    makes, reads = rows.shape
    form = Form(kind, (reads,), (makes,))
    codes_shape, scales_shape = form.shapes()
    codes, scales = np.empty(codes_shape, code_dtype(kind)), np.empty(scales_shape, np.float32)
    if not form.by_row:
        padded = np.zeros((1, scales.size * BLOCK), np.float32)
        padded[0, : rows.size] = rows.reshape(-1)
        made, of_blocks = _nf4(padded)
        return made[0], of_blocks[0]
    step = max(_CHUNK // reads, 1)
    for first in range(0, makes, step):
        part = slice(first, first + step)
        wide = rows[part].astype(np.float32)
        made, own = _int8(wide) if kind == "int8" else _nf4(wide)
        codes[:, part], scales[..., part] = made.T, own.T
    return codes, scales


def _int8(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [rows, I] and scales [rows]."""
    scales = np.abs(rows).max(axis=1) / np.float32(127)
    return np.rint(rows / np.where(scales, scales, 1)[:, None]).astype(np.int8), scales


_VALUES = np.array(NF4, np.float32)
_EDGES = (_VALUES[:-1] + _VALUES[1:]) / 2


def _nf4(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [rows, I/2] and scales [rows, I/64]; 64 divides I."""
    blocks = rows.reshape(len(rows), -1, BLOCK)
    scales = np.abs(blocks).max(axis=2)
    scaled = blocks * (1 / np.where(scales, scales, 1))[..., None]
    nearest = np.zeros(scaled.shape, np.uint8)
    for edge in _EDGES:
        nearest += scaled > edge
    half = BLOCK // 2
    codes = nearest[..., :half] << 4 | nearest[..., half:]
    return codes.reshape(len(rows), -1), scales
