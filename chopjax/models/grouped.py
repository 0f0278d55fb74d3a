"""Rows in groups, each group times a kernel of its own.

On accelerators this is jax.lax.ragged_dot. On processors jax makes that a product of every row with
every kernel, over as many copies of the rows as there are kernels: here it goes tile by tile there,
a tile being neighbouring rows of one group.

Axes: R rows, sorted by group, X groups, I and O a kernel's two sides, N tiles.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from chopjax.models.linear import precision_in_force

LEAST, MOST = 8, 256  # rows of a tile

# Σ of x ⊗ y over each group's rows: the rows are contracted, in groups.
BY_GROUP = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (0,), ())


def grouped(x_RI: jax.Array, kernels_XIO: jax.Array, sizes_X: jax.Array) -> jax.Array:
    """[R, O], in x's dtype, which the kernels have too. sizes_X: int32; the first sizes_X[0] rows
    are the first group's, and all together are R."""
    made: jax.Array = _grouped(x_RI, kernels_XIO, sizes_X, precision_in_force())
    return made


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _grouped(
    x_RI: jax.Array, kernels_XIO: jax.Array, sizes_X: jax.Array, precision: str | None
) -> jax.Array:
    """precision: of the forward pass, for the backward one, which is traced later."""
    with jax.default_matmul_precision(precision):
        made: jax.Array = jax.lax.platform_dependent(
            x_RI, kernels_XIO, sizes_X, cpu=by_tiles, default=jax.lax.ragged_dot
        )
    return made


Inputs = tuple[jax.Array, jax.Array, jax.Array]


def _forward(
    x_RI: jax.Array, kernels_XIO: jax.Array, sizes_X: jax.Array, precision: str | None
) -> tuple[jax.Array, Inputs]:
    return _grouped(x_RI, kernels_XIO, sizes_X, precision), (x_RI, kernels_XIO, sizes_X)


def _backward(
    precision: str | None, inputs: Inputs, d_RO: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    x_RI, kernels_XIO, sizes_X = inputs
    d_RI = _grouped(d_RO, jnp.swapaxes(kernels_XIO, 1, 2), sizes_X, precision)
    with jax.default_matmul_precision(precision):
        d_XIO = outer(x_RI, d_RO, sizes_X)
    return d_RI, d_XIO, None


_grouped.defvjp(_forward, _backward)


def outer(x_RI: jax.Array, y_RO: jax.Array, sizes_X: jax.Array) -> jax.Array:
    """Of every group, xᵀ·y: [X, I, O], in x's dtype."""
    made: jax.Array = jax.lax.platform_dependent(
        x_RI, y_RO, sizes_X, cpu=outer_by_tiles, default=_outer_by_group
    )
    return made


def _outer_by_group(x_RI: jax.Array, y_RO: jax.Array, sizes_X: jax.Array) -> jax.Array:
    return jax.lax.ragged_dot_general(x_RI, y_RO, sizes_X, BY_GROUP)


class Tiles(NamedTuple):
    """Neighbouring rows of one group each, in the order of the rows."""

    rows: int  # of a tile
    number: jax.Array  # of tiles; the entries after them are nobody's
    group_N: jax.Array
    start_N: jax.Array  # the first row
    used_N: jax.Array  # how many of its rows are the group's; the others follow them


def tiles(rows: int, sizes_X: jax.Array) -> Tiles:
    """About as large as an average group, so that half of the work at most is for nobody."""
    groups = sizes_X.shape[0]
    tile = min(MOST, max(LEAST, 1 << (max(rows // groups, 1) - 1).bit_length()))
    count_X = -(-sizes_X // tile)
    last_X = jnp.cumsum(count_X)
    number_N = jnp.arange(rows // tile + groups)
    group_N = jnp.minimum((last_X <= number_N[:, None]).sum(1), groups - 1)
    within_N = (number_N - (last_X - count_X)[group_N]) * tile
    start_N = (jnp.cumsum(sizes_X) - sizes_X)[group_N] + within_N
    return Tiles(tile, last_X[-1], group_N, start_N, sizes_X[group_N] - within_N)


def by_tiles(x_RI: jax.Array, kernels_XIO: jax.Array, sizes_X: jax.Array) -> jax.Array:
    """ragged_dot. What a tile computes past its group's end, the next tile overwrites."""
    (rows, _), outputs = x_RI.shape, kernels_XIO.shape[2]
    wide = jnp.promote_types(jnp.float32, x_RI.dtype)  # of sums: see linear.contract
    cut = tiles(rows, sizes_X)
    padded = jnp.pad(x_RI, ((0, cut.rows), (0, 0)))

    def one(number: jax.Array, made: jax.Array) -> jax.Array:
        start, kernel_IO = cut.start_N[number], kernels_XIO[cut.group_N[number]]
        tile = jax.lax.dynamic_slice_in_dim(padded, start, cut.rows)
        product = jnp.matmul(tile, kernel_IO, preferred_element_type=wide).astype(made.dtype)
        return jax.lax.dynamic_update_slice_in_dim(made, product, start, 0)

    made = jnp.zeros((rows + cut.rows, outputs), x_RI.dtype)
    done: jax.Array = jax.lax.fori_loop(0, cut.number, one, made)
    return done[:rows]


def outer_by_tiles(x_RI: jax.Array, y_RO: jax.Array, sizes_X: jax.Array) -> jax.Array:
    """Of every group, xᵀ·y: [X, I, O], summed in float32."""
    cut = tiles(x_RI.shape[0], sizes_X)
    padded_x, padded_y = (jnp.pad(rows, ((0, cut.rows), (0, 0))) for rows in (x_RI, y_RO))

    def one(number: jax.Array, total_XIO: jax.Array) -> jax.Array:
        start = cut.start_N[number]
        x, y = (jax.lax.dynamic_slice_in_dim(p, start, cut.rows) for p in (padded_x, padded_y))
        x = jnp.where((jnp.arange(cut.rows) < cut.used_N[number])[:, None], x, 0)
        part_IO = jnp.matmul(x.T, y, preferred_element_type=jnp.float32)
        return total_XIO.at[cut.group_N[number]].add(part_IO)

    shape = (sizes_X.shape[0], x_RI.shape[1], y_RO.shape[1])
    total: jax.Array = jax.lax.fori_loop(0, cut.number, one, jnp.zeros(shape, jnp.float32))
    return total.astype(x_RI.dtype)
