"""Kernels in four or eight bits: codes, scales, and the product with them.

    nf4   QLoRA's NormalFloat (arXiv 2305.14314, section 3 and appendix E). The matrix as a
          checkpoint's Linear has it, [out, in], is one row of numbers; of every 64 of them the
          largest magnitude is kept in float32, and of each number, divided by that, the nearest of
          16 values. Two codes a byte, the first in the high half. The same codes and scales as
          bitsandbytes'; scales are not quantized themselves.
    int8  a scale for every output, its largest magnitude / 127, and the nearest multiple of it.

Axes of a kernel: leading ones (L, and X where there are experts), inputs, outputs. In memory the
outputs come first, then the inputs as one axis I, so that blocks of 64 lie along a row and both can
be split over devices. Where 64 does not divide I, blocks cross rows, and the kernel is one row.
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
from chopjax.models.linear import precision_in_force
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
        width = math.prod(self.inputs)
        if self.kind == "int8":
            return (*self.outputs, width), self.outputs
        if self.by_row:
            return (*self.outputs, width // 2), (*self.outputs, width // BLOCK)
        return (-(-self.numbers // 2),), (-(-self.numbers // BLOCK),)


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
        width = math.prod(self.form.inputs)
        return _product(x.reshape(*leading, width), self, precision_in_force())

    def unpacked(self, dtype: Any) -> jax.Array:
        """The values that the codes stand for: [leading…, outputs…, I], computed in float32."""
        form, width = self.form, math.prod(self.form.inputs)
        codes: jax.Array = self.codes
        leading = codes.shape[: codes.ndim - len(form.shapes()[0])]
        wide: jax.Array
        if form.kind == "int8":
            wide = codes.astype(jnp.float32) * self.scales[..., None]
        else:
            # The high half of each byte, then the low one.
            values = _nf4_values(jnp.stack([codes >> 4, codes & 15], axis=-1))
            if form.by_row:
                values = values.reshape(*self.scales.shape, BLOCK)
                wide = values * self.scales[..., None]
            else:
                scales = jnp.repeat(self.scales, BLOCK, axis=-1)[..., : form.numbers]
                wide = values.reshape(*leading, -1)[..., : form.numbers] * scales
        return wide.reshape(*leading, *form.outputs, width).astype(dtype)

    def kernel(self, dtype: Any) -> jax.Array:
        """The same in a kernel's own layout: [leading…, inputs…, outputs…]."""
        rows = jnp.moveaxis(self.unpacked(dtype), -1, -1 - len(self.form.outputs))
        leading = rows.shape[: rows.ndim - 1 - len(self.form.outputs)]
        return rows.reshape(*leading, *self.form.inputs, *self.form.outputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, node: Quantized, precision: str | None) -> jax.Array:
    """x [batch…, I] times the kernel: [batch…, outputs…]."""
    last = (x.ndim - 1,), (len(node.form.outputs),)
    return jnp.tensordot(x, node.unpacked(x.dtype), last, precision=precision)


def _forward(x: jax.Array, node: Quantized, precision: str | None) -> tuple[jax.Array, Quantized]:
    return _product(x, node, precision), node


def _backward(precision: str | None, node: Quantized, d_y: jax.Array) -> tuple[jax.Array, None]:
    outputs = len(node.form.outputs)
    axes = tuple(range(d_y.ndim - outputs, d_y.ndim)), tuple(range(outputs))
    return jnp.tensordot(d_y, node.unpacked(d_y.dtype), axes, precision=precision), None


_product.defvjp(_forward, _backward)


def _nf4_values(codes: jax.Array) -> jax.Array:
    """Code → value, float32. A tree of choices by the code's bits: no hardware here looks numbers
    up in a table as fast."""
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
    leading, outputs = spec[: len(axes.leading)], spec[first:]
    reads: str | None = spec[len(axes.leading)]  # of N and H, heads are split
    if reads and math.prod(form.inputs) % (BLOCK * mesh.shape[reads]):
        reads = None
    ways: tuple[PartitionSpec, ...] = (PartitionSpec(*leading), PartitionSpec(*leading))
    if form.by_row:
        own = (reads,) if form.kind == "nf4" else ()
        codes = PartitionSpec(*leading, *outputs, reads)
        ways = codes, PartitionSpec(*leading, *outputs, *own)
    before = tuple(size[a] for a in axes.leading)
    dtypes = code_dtype(form.kind), np.dtype(np.float32)
    codes_like, scales_like = (
        jax.ShapeDtypeStruct((*before, *shape), dtype, sharding=NamedSharding(mesh, way))
        for shape, dtype, way in zip(form.shapes(), dtypes, ways, strict=True)
    )
    return Quantized(codes_like, scales_like, form)


# ------------------------------------------------------------------- Quantizing, without a device


def quantize(rows: np.ndarray, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of one matrix [outputs…, I], of any float type; of one shape with
    `Form.shapes`. Besides the result, host memory holds a few million bytes."""
    form = Form(kind, rows.shape[-1:], rows.shape[:-1])
    codes_shape, scales_shape = form.shapes()
    codes, scales = np.empty(codes_shape, code_dtype(kind)), np.empty(scales_shape, np.float32)
    into = _int8 if kind == "int8" else _nf4
    if form.by_row:
        width = rows.shape[-1]
        matrix = rows.reshape(-1, width)
        flat_codes, flat_scales = codes.reshape(len(matrix), -1), scales.reshape(len(matrix), -1)
        step = max(_CHUNK // width, 1)
        for first in range(0, len(matrix), step):
            part = slice(first, first + step)
            wide = matrix[part].astype(np.float32)
            into(wide, flat_codes[part], flat_scales[part])
        return codes, scales
    padded = np.zeros(scales.size * BLOCK, np.float32)
    padded[: rows.size] = rows.reshape(-1)
    packed = np.empty(padded.size // 2, np.uint8)
    into(padded[None], packed[None], scales[None])
    return packed[: codes.size], scales


def _int8(rows: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> None:
    """Fills codes [rows, I] and scales [rows, 1]."""
    np.abs(rows).max(axis=1, keepdims=True, out=scales)
    scales /= 127
    codes[...] = np.rint(rows / np.where(scales, scales, 1))


_VALUES = np.array(NF4, np.float32)
_EDGES = (_VALUES[:-1] + _VALUES[1:]) / 2


def _nf4(rows: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> None:
    """Fills codes [rows, I/2] and scales [rows, I/64]; 64 divides I."""
    blocks = rows.reshape(len(rows), -1, BLOCK)
    np.abs(blocks).max(axis=2, out=scales)
    scaled = blocks * (1 / np.where(scales, scales, 1))[..., None]
    nearest = np.zeros(scaled.shape, np.uint8)
    for edge in _EDGES:
        nearest += scaled > edge
    pairs = nearest.reshape(len(rows), -1, 2)
    codes[...] = pairs[..., 0] << 4 | pairs[..., 1]
