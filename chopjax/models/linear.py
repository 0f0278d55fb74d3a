"""Products with a weight: every kernel of a decoder goes through `project` and `linear`, those of
experts through `stacked` (and grouped.py).

Axes of x and y: any leading ones, then those of the kernel.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from chopjax.hardware import processors
from chopjax.models.mesh import on_processors, scatters_gradients
from chopjax.models.parameters import Params

FEW_ROWS = 2  # that processors multiply one by one; three take as long together
SHORTEST_PART = 32  # inputs: what parts make is written, and read once more

TILE = 128  # columns that lie together on a TPU
SCATTERED_PRIME = 23  # the largest prime factor that its compiler splits (libtpu 0.0.52)


@runtime_checkable
class WeightNode(Protocol):
    """A kernel that is more than one array: quantized, or with a low-rank addition.

    It stands in the parameters where the array would, is a registered pytree (flax.struct), and
    under `blocks` each of its arrays has the layer axis L first.
    """

    def product(self, x: jax.Array, contracted: int) -> jax.Array:
        """The last `contracted` axes of x times the first of the kernel, in x's dtype."""
        ...


@runtime_checkable
class UnpackedNode(Protocol):
    """A node that can be many experts' kernels: it gives the array that it stands for."""

    def kernel(self, dtype: Any) -> jax.Array:
        """In the parameter's own layout."""
        ...


def project(params: Params, name: str, x: jax.Array, contracted: int = 1) -> jax.Array:
    """x times the kernel params[name], plus params[f"{name}_bias"] where there is one."""
    y = linear(x, params[name], contracted)
    if f"{name}_bias" in params:
        y += params[f"{name}_bias"].astype(y.dtype)
    return y


def linear(x: jax.Array, kernel: jax.Array | WeightNode, contracted: int = 1) -> jax.Array:
    """The last `contracted` axes of x times the first of the kernel, in x's dtype."""
    if isinstance(kernel, WeightNode):
        return kernel.product(x, contracted)
    return product(x, kernel.astype(x.dtype), contracted, precision_in_force())


def precision_in_force() -> str | None:
    """Of jax.default_matmul_precision, which a backward pass of our own is traced too late for."""
    config: Any = jax.config  # whose types do not know its flags
    precision: str | None = config.jax_default_matmul_precision
    return precision


def stacked(params: Params, name: str, dtype: jnp.dtype) -> jax.Array:
    """The kernels params[name] of many experts, in this dtype."""
    kernels = params[name]
    if isinstance(kernels, UnpackedNode):
        return kernels.kernel(dtype)
    made: jax.Array = kernels.astype(dtype)
    return made


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(
    x: jax.Array, kernel: jax.Array, contracted: int = 1, precision: str | None = None
) -> jax.Array:
    """`linear` for an array of x's dtype, differentiated in the order that suits the hardware.

    Reverse mode only; of bfloat16 on processors, once. jax's own rule makes a kernel's gradient as
    (dyᵀ·x)ᵀ. The product is the same as xᵀ·dy, but on processors its left side is transposed in
    memory, with what makes it (an activation and its derivative, say) computed down the columns.
    Here the smaller side is, once it is made. Accelerators compute either side within the product:
    made beforehand it would only travel to memory and back.
    """
    return multiply(x, kernel, contracted, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def frozen_product(
    x: jax.Array, kernel: jax.Array, contracted: int = 1, precision: str | None = None
) -> jax.Array:
    """`product` with a kernel that never moves: it gets no gradient, for which x would be kept."""
    return multiply(x, kernel, contracted, precision)


frozen_product.defvjp(
    lambda x, kernel, *rest: (frozen_product(x, kernel, *rest), kernel),
    lambda contracted, precision, kernel, d_y: (_d_x(d_y, kernel, contracted, precision), None),
)


def _d_x(d_y: jax.Array, kernel: jax.Array, contracted: int, precision: str | None) -> jax.Array:
    outputs = tuple(range(contracted, kernel.ndim))
    axes = tuple(range(d_y.ndim - len(outputs), d_y.ndim)), outputs
    return contract(d_y, kernel, axes, precision)


def contract(x: jax.Array, y: jax.Array, axes: Any, precision: str | None) -> jax.Array:
    """jnp.tensordot of two arrays of one dtype, in that dtype.

    Processors add bfloat16 up in float32 and round the sum, as accelerators do by themselves:
    asked for bfloat16, XLA's products there take twice as long (jax 0.10).
    """
    if x.dtype == jnp.bfloat16 and on_processors():
        wide = jnp.tensordot(x, y, axes, precision=precision, preferred_element_type=jnp.float32)
        return wide.astype(x.dtype)
    return jnp.tensordot(x, y, axes, precision=precision)


def multiply(x: jax.Array, kernel: jax.Array, contracted: int, precision: str | None) -> jax.Array:
    """The last `contracted` axes of x times the first of the kernel."""
    leading, row = x.shape[:-contracted], x.shape[-contracted:]
    rows = math.prod(leading)
    if x.dtype != jnp.float32 or not 1 <= rows <= FEW_ROWS or not on_processors():
        return in_company(x, contracted, lambda x: contract(x, kernel, contracted, precision))
    kernel_IO = kernel.reshape(math.prod(row), math.prod(kernel.shape[contracted:]))
    made = [_in_parts(x_I, kernel_IO, precision) for x_I in x.reshape(rows, math.prod(row))]
    return jnp.stack(made).reshape(*leading, *kernel.shape[contracted:])


def _in_parts(x_I: jax.Array, kernel_IO: jax.Array, precision: str | None) -> jax.Array:
    """x · kernel, with a part P of the inputs for every processor.

    Where a token is decoded, reading the kernels is what takes time. XLA gives a batch of products
    to all processors, but a product with one vector to one of them or badly to several (jax 0.10).
    By parts, two cores read kernels at 24 to 31 GB/s, otherwise at 14 to 25.
    """
    inputs = len(x_I)
    most = min(processors(), max(inputs // SHORTEST_PART, 1))
    parts = max(n for n in range(1, most + 1) if inputs % n == 0)
    each = inputs // parts
    sides = x_I.reshape(parts, each), kernel_IO.reshape(parts, each, kernel_IO.shape[1])
    return jnp.einsum("PI,PIO->PO", *sides, precision=precision).sum(axis=0)


def in_company(
    x: jax.Array, contracted: int, product: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """product(x), which contracts the last axes of x; a single row of bfloat16 goes with an empty
    one.

    On processors a matrix of bfloat16 times one vector is computed on a float32 copy of the matrix
    (jax 0.10): where a token is decoded, that takes two to nine times as long as two rows do.
    """
    leading, row = x.shape[:-contracted], x.shape[-contracted:]
    if math.prod(leading) != 1 or x.dtype != jnp.bfloat16 or not on_processors():
        return product(x)
    made = product(jnp.pad(x.reshape(1, *row), [(0, 1)] + [(0, 0)] * contracted))
    return made[0].reshape(*leading, *made.shape[1:])


def _forward(
    x: jax.Array, kernel: jax.Array, contracted: int, precision: str | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(x, kernel, contracted, precision), (x, kernel)


def _backward(
    contracted: int,
    precision: str | None,
    inputs: tuple[jax.Array, jax.Array],
    d_y: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = inputs
    tensordot = functools.partial(contract, precision=precision)
    rows = tuple(range(x.ndim - contracted))
    made = tuple(range(len(rows), d_y.ndim))
    d_x = _d_x(d_y, kernel, contracted, precision)
    if not on_processors():
        return d_x, _in_pieces(x, d_y, rows, tensordot)
    if x.dtype == jnp.bfloat16 and x.size and jax.sharding.get_abstract_mesh().size <= 1:
        R = math.prod(x.shape[: len(rows)])
        x_RI, d_y_RO = x.reshape(R, -1), d_y.reshape(R, -1)
        if x.size <= d_y.size:
            d_kernel_IO = contract(turned(x_RI), d_y_RO, 1, precision)
        else:
            d_kernel_IO = turned(contract(turned(d_y_RO), x_RI, 1, precision))
        return d_x, d_kernel_IO.reshape(kernel.shape)
    if x.size <= d_y.size:
        return d_x, tensordot(jax.lax.optimization_barrier(x), d_y, (rows, rows))
    d_kernel = tensordot(jax.lax.optimization_barrier(d_y), x, (rows, rows))
    # The compiler would turn the product round again to save turning its result.
    d_kernel = jax.lax.optimization_barrier(d_kernel)
    return d_x, jnp.moveaxis(d_kernel, tuple(range(len(made))), tuple(range(-len(made), 0)))


def turned(x_RI: jax.Array) -> jax.Array:
    """[R, I] → [I, R], here and not inside a product that reads it, which processors are slow at.

    With bfloat16 they make such a product of float32 copies (jax 0.10), at a fourth of the rate if
    they can multiply bfloat16, and XLA puts the transposition back into the product whatever
    stands between, but for a loop: it does not know that this one ends before its first round. As
    one row, what goes through the loop has one order in memory.
    """
    if x_RI.dtype != jnp.bfloat16 or not on_processors():
        turned: jax.Array = jax.lax.optimization_barrier(x_RI.T)
        return turned
    rounds = jax.lax.bitcast_convert_type(x_RI, jnp.uint16)[0, 0].astype(jnp.int32) >> 16
    row: jax.Array = jax.lax.fori_loop(0, rounds, lambda _, row: -row, x_RI.T.reshape(-1))
    return row.reshape(x_RI.shape[::-1])


def _in_pieces(
    x: jax.Array, d_y: jax.Array, rows: tuple[int, ...], tensordot: Callable[..., jax.Array]
) -> jax.Array:
    """A kernel's gradient, in pieces of a feed-forward's width where the TPU's compiler may not
    scatter the whole.

    Chips that hold a part each sum gradients by reduce-scatters, which move half of what
    all-reduces do. Of 4,096 rows along 64 chips of v5e, libtpu 0.0.52 makes them if no prime
    factor of the columns is above 23: not of the 43 · 256 of Llama-2-7B, the 37 · 512 of Qwen2-7B,
    the 71 · 256 of Falcon-7B. Where it would make them anyway, pieces take as long. They hold the
    same numbers.
    """
    if x.ndim == d_y.ndim == len(rows) + 1 and scatters_gradients():
        wide, axis = (d_y, 1) if d_y.shape[-1] > x.shape[-1] else (x, 0)
        ends = list(itertools.accumulate(pieces(wide.shape[-1])))[:-1]
        if ends:
            parts = jnp.split(wide, ends, axis=-1)
            pairs = [(x, part) if axis else (part, d_y) for part in parts]
            return jnp.concatenate([tensordot(*pair, (rows, rows)) for pair in pairs], axis)
    return tensordot(x, d_y, (rows, rows))


def pieces(width: int) -> list[int]:
    """Sizes that add up to a width of whole tiles, none with a prime factor above SCATTERED_PRIME;
    of other widths the width itself."""
    tiles, beyond = divmod(width, TILE)
    if beyond or _largest_prime(tiles) <= SCATTERED_PRIME:
        return [width]
    first = TILE << (tiles.bit_length() - 1)
    return [first, *pieces(width - first)]


def _largest_prime(number: int) -> int:
    factor = 2
    while factor * factor <= number:
        if number % factor:
            factor += 1
        else:
            number //= factor
    return number


product.defvjp(_forward, _backward)
