"""One input after the other changes, and the weights of later inputs make up for it.

SparseGPT (arXiv 2301.00774) and GPTQ (2210.17323) are this walk: to change the weight w of input j
to q leaves the error (w - q) / U_jj, and as much of it as U says is taken from the weights of the
inputs behind. U is the upper Cholesky factor of the inverse of H = 2/n·Σ xᵀx, which is damped.

Axes: I inputs, O outputs, C inputs of a block, M those of a group, n tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg.lapack

from chopjax.errors import UserError

BLOCK, DAMPENING = 128, 0.01  # the papers'

# (weights of a group [M, O], U's diagonal there [M], the first input's number) → what `Settle` is
# told of each, [M, …].
Begin = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# (weights of an input [O], what it is told) → what they become.
Settle = Callable[[jax.Array, jax.Array], jax.Array]


def inverse_factor(gram_II: np.ndarray, tokens: int, where: str) -> np.ndarray:
    """U, upper triangular, UᵀU = (H + 0.01·mean(diag H)·I)⁻¹. float64 within, float32 out.

    gram_II: Σ xᵀx, finite. An input that is never anything but zero counts as one of size 1; its
    weights go. where: for the message of the UserError where rounding left no such factor: inputs
    that are by far the largest of all and go together have next to no dampening.
    """
    hessian_II = gram_II.astype(np.float64) * (2 / tokens)
    diagonal_I = hessian_II.diagonal().copy()
    diagonal_I[diagonal_I == 0] = 1
    hessian_II[np.diag_indices_from(hessian_II)] = diagonal_I + DAMPENING * diagonal_I.mean()
    # From the last input to the first, a lower factor is an upper one: H = RRᵀ, and U = R⁻¹ needs
    # no inverse of H.
    try:
        lower_II = np.linalg.cholesky(hessian_II[::-1, ::-1])
    except np.linalg.LinAlgError as error:
        raise UserError(
            f"{where}: some inputs are so large on this text, and so alike, that 2/n·Σ xᵀx cannot "
            "be inverted; take other text, or a method that does without: wanda for zeros, nearest "
            "for bits"
        ) from error
    inverse_II, _ = scipy.linalg.lapack.dtrtri(lower_II[::-1, ::-1], lower=0)
    factor_II: np.ndarray = np.triu(inverse_II).astype(np.float32)
    return factor_II


def compensated(
    weight_IO: jax.Array,
    dead_I: jax.Array,
    factor_II: jax.Array,
    group: int | None,
    begin: Begin,
    settle: Settle,
) -> jax.Array:
    """The matrix with every input settled, [I, O] float32. To be traced.

    dead_I: bool, inputs that are always zero. factor_II: of inverse_factor. group: how many inputs
    `begin` sees at a time, a divisor of BLOCK and of I; None: those of a block. It sees them when
    their turn comes: by then the weights have taken in the errors before them.
    """
    inputs = weight_IO.shape[0]
    weight_IO = jnp.where(dead_I[:, None], 0, weight_IO.astype(jnp.float32))
    with jax.default_matmul_precision("highest"):
        whole = inputs // BLOCK

        def block(number: jax.Array, weight_IO: jax.Array) -> jax.Array:
            start = number * BLOCK
            return _block(weight_IO, factor_II, start, BLOCK, group or BLOCK, begin, settle)

        if whole:
            weight_IO = jax.lax.fori_loop(0, whole, block, weight_IO)
        if rest := inputs - whole * BLOCK:
            start = jnp.int32(whole * BLOCK)
            weight_IO = _block(weight_IO, factor_II, start, rest, group or rest, begin, settle)
    return weight_IO


def _block(
    weight_IO: jax.Array,
    factor_II: jax.Array,
    start: jax.Array,
    size: int,
    group: int,
    begin: Begin,
    settle: Settle,
) -> jax.Array:
    """One block's inputs settled, and its errors made up for in all later ones."""
    rows_CI = jax.lax.dynamic_slice_in_dim(factor_II, start, size)
    factor_CC = jax.lax.dynamic_slice_in_dim(rows_CI, start, size, axis=1)
    weight_CO = jax.lax.dynamic_slice_in_dim(weight_IO, start, size)
    diagonal_C = factor_CC.diagonal()

    def of_group(
        number: jax.Array, carry: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        weight_CO, error_CO = carry
        first = number * group
        weight_MO = jax.lax.dynamic_slice_in_dim(weight_CO, first, group)
        diagonal_M = jax.lax.dynamic_slice_in_dim(diagonal_C, first, group)
        told = begin(weight_MO, diagonal_M, start + first)

        def one(at: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            weight_CO, error_CO = carry
            row = first + at
            stays_O = settle(weight_CO[row], told[at])
            error_O = (weight_CO[row] - stays_O) / diagonal_C[row]
            weight_CO -= factor_CC[row][:, None] * error_O  # zero before the diagonal
            return weight_CO.at[row].set(stays_O), error_CO.at[row].set(error_O)

        made: tuple[jax.Array, jax.Array] = jax.lax.fori_loop(0, group, one, (weight_CO, error_CO))
        return made

    begun = (weight_CO, jnp.zeros_like(weight_CO))
    weight_CO, error_CO = jax.lax.fori_loop(0, size // group, of_group, begun)
    later_I = jnp.arange(factor_II.shape[0]) >= start + size
    weight_IO -= jnp.where(later_I, rows_CI, 0).T @ error_CO
    return jax.lax.dynamic_update_slice_in_dim(weight_IO, weight_CO, start, 0)
