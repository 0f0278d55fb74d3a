"""Grouped products: tile by tile as jax.lax.ragged_dot has them, and a loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from chopjax.models.grouped import LEAST, MOST, by_tiles, grouped, outer_by_tiles, tiles

I, O = 5, 7  # noqa: E741  a kernel's two sides
GROUPS = [
    [1],
    [0, 0, 3],
    [4, 0, 5, 0],
    [8, 16, 0, 9],  # whole tiles, and a row more
    [1] * 20,
    [0] * 30 + [33] + [0] * 30,
    [700, 1, 0, 3],
    [0] * 63 + [2],
]


def arrays(sizes: list[int]) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    random = np.random.default_rng(0)
    shapes = [(sum(sizes), I), (len(sizes), I, O), (sum(sizes), O)]
    x, kernels, d = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes)
    return x, kernels, d, jnp.asarray(sizes, jnp.int32)


@pytest.mark.parametrize("sizes", GROUPS, ids=str)
def test_value_and_gradients_are_those_of_a_loop(sizes: list[int]) -> None:
    x_RI, kernels_XIO, d_RO, sizes_X = arrays(sizes)
    x, kernels = (torch.tensor(np.array(a), requires_grad=True) for a in (x_RI, kernels_XIO))
    pairs = zip(x.split(sizes), kernels, strict=True)
    loop = torch.cat([rows @ kernel for rows, kernel in pairs])
    loop.backward(torch.tensor(np.array(d_RO)))

    @jax.jit
    def mine(x_RI: jax.Array, kernels_XIO: jax.Array) -> tuple[jax.Array, ...]:
        y_RO, back = jax.vjp(lambda x, k: grouped(x, k, sizes_X), x_RI, kernels_XIO)
        return y_RO, *back(d_RO)

    for got, want in zip(mine(x_RI, kernels_XIO), (loop, x.grad, kernels.grad), strict=True):
        assert want is not None
        np.testing.assert_allclose(got, want.detach().numpy(), atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_accelerators_compute(dtype: str) -> None:
    """jax's own products are what `default` is; here they run on a processor."""
    from chopjax.models.grouped import _outer_by_group

    x_RI, kernels_XIO, d_RO, sizes_X = (
        a if a.dtype == jnp.int32 else a.astype(dtype) for a in arrays([40, 0, 9, 16])
    )
    for mine, own in (
        (by_tiles(x_RI, kernels_XIO, sizes_X), jax.lax.ragged_dot(x_RI, kernels_XIO, sizes_X)),
        (outer_by_tiles(x_RI, d_RO, sizes_X), _outer_by_group(x_RI, d_RO, sizes_X)),
    ):
        assert mine.dtype == own.dtype == dtype
        wide = own.astype(jnp.float32)
        atol = 1e-4 if dtype == "float32" else 0.02 * float(jnp.abs(wide).max())
        np.testing.assert_allclose(mine.astype(jnp.float32), wide, atol=atol)


@pytest.mark.parametrize("sizes", GROUPS, ids=str)
def test_tiles_cover_every_row_once(sizes: list[int]) -> None:
    cut = tiles(sum(sizes), jnp.asarray(sizes, jnp.int32))
    assert LEAST <= cut.rows <= MOST
    number = int(cut.number)
    assert number <= len(cut.start_N)
    covered: list[int] = []
    starts, used_N = np.asarray(cut.start_N).tolist(), np.asarray(cut.used_N).tolist()
    for start, used in zip(starts[:number], used_N[:number], strict=True):
        covered += range(start, start + min(used, cut.rows))
    assert covered == list(range(sum(sizes)))


def test_a_processor_copies_no_row_for_every_group() -> None:
    sizes = jax.ShapeDtypeStruct((64,), jnp.int32)
    x, kernels = jax.ShapeDtypeStruct((512, 32), "f4"), jax.ShapeDtypeStruct((64, 32, 48), "f4")
    program = jax.jit(grouped).lower(x, kernels, sizes).compile()
    memory = program.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 4 * 512 * (32 + 48) * 4
