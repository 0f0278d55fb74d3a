"""SparseGPT (arXiv 2301.00774): what goes is made up for by the weights of later inputs.

Input by input, in blocks of 128: a weight that goes leaves the error w / U_jj, and as much of it as
U says is taken from the weights of the inputs behind. U is the upper Cholesky factor of the inverse
of H = 2/n·Σ xᵀx, which is damped.

Axes: I inputs, O outputs, C inputs of a block, M those of a group, n tokens.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg.lapack

from chopjax.errors import UserError
from chopjax.sparsify.masks import smallest, smallest_in_groups
from chopjax.sparsify.pattern import Pattern

BLOCK, DAMPENING = 128, 0.01  # the paper's


def inverse_factor(gram_II: np.ndarray, tokens: int, where: str) -> np.ndarray:
    """U, upper triangular, UᵀU = (H + 0.01·mean(diag H)·I)⁻¹. float64 within, float32 out.

    gram_II: Σ xᵀx. An input that is never anything but zero counts as one of size 1; its weights
    go. where: for the message of the UserError where the inputs are no finite numbers.
    """
    hessian_II = gram_II.astype(np.float64) * (2 / tokens)
    if not np.isfinite(hessian_II).all():
        raise UserError(f"{where}: the inputs on this text are not all finite numbers")
    diagonal_I = hessian_II.diagonal().copy()
    diagonal_I[diagonal_I == 0] = 1
    hessian_II[np.diag_indices_from(hessian_II)] = diagonal_I + DAMPENING * diagonal_I.mean()
    # From the last input to the first, a lower factor is an upper one: H = RRᵀ, and U = R⁻¹ needs
    # no inverse of H.
    lower_II = np.linalg.cholesky(hessian_II[::-1, ::-1])
    inverse_II, _ = scipy.linalg.lapack.dtrtri(lower_II[::-1, ::-1], lower=0)
    factor_II: np.ndarray = np.triu(inverse_II).astype(np.float32)
    return factor_II


@functools.partial(jax.jit, static_argnames="pattern")
def sparsegpt(
    weight_IO: jax.Array, dead_I: jax.Array, factor_II: jax.Array, pattern: Pattern
) -> jax.Array:
    """The matrix with its zeros, and the other weights changed: [I, O] float32.

    dead_I: bool, inputs that are always zero. factor_II: of inverse_factor.
    """
    inputs = weight_IO.shape[0]
    weight_IO = jnp.where(dead_I[:, None], 0, weight_IO.astype(jnp.float32))
    with jax.default_matmul_precision("highest"):
        whole = inputs // BLOCK

        def block(number: jax.Array, weight_IO: jax.Array) -> jax.Array:
            return _block(weight_IO, factor_II, number * BLOCK, BLOCK, pattern)

        if whole:
            weight_IO = jax.lax.fori_loop(0, whole, block, weight_IO)
        if rest := inputs - whole * BLOCK:
            weight_IO = _block(weight_IO, factor_II, whole * BLOCK, rest, pattern)
    return weight_IO


def _block(
    weight_IO: jax.Array, factor_II: jax.Array, start: jax.Array | int, size: int, pattern: Pattern
) -> jax.Array:
    """One block's weights as they stay, and its errors made up for in all later ones."""
    rows_CI = jax.lax.dynamic_slice_in_dim(factor_II, start, size)
    factor_CC = jax.lax.dynamic_slice_in_dim(rows_CI, start, size, axis=1)
    weight_CO = jax.lax.dynamic_slice_in_dim(weight_IO, start, size)
    scale_C1 = jnp.square(factor_CC.diagonal())[:, None]
    # Chosen when their turn comes: by then the weights have taken in the errors before them.
    chosen = size if pattern.group is None else pattern.group

    def group(number: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        weight_CO, error_CO = carry
        first = number * chosen
        weight_MO = jax.lax.dynamic_slice_in_dim(weight_CO, first, chosen)
        score_MO = jnp.square(weight_MO) / jax.lax.dynamic_slice_in_dim(scale_C1, first, chosen)
        if pattern.group is None:
            mask_MO = smallest(score_MO, pattern.count(score_MO.size))
        else:
            mask_MO = smallest_in_groups(score_MO, pattern)

        def one(at: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            weight_CO, error_CO = carry
            row = first + at
            error_O = jnp.where(mask_MO[at], weight_CO[row] / factor_CC[row, row], 0)
            stays_O = jnp.where(mask_MO[at], 0, weight_CO[row])
            weight_CO -= factor_CC[row][:, None] * error_O  # zero before the diagonal
            return weight_CO.at[row].set(stays_O), error_CO.at[row].set(error_O)

        made: tuple[jax.Array, jax.Array] = jax.lax.fori_loop(0, chosen, one, (weight_CO, error_CO))
        return made

    begun = (weight_CO, jnp.zeros_like(weight_CO))
    weight_CO, error_CO = jax.lax.fori_loop(0, size // chosen, group, begun)
    later_I = jnp.arange(factor_II.shape[0]) >= start + size
    weight_IO -= jnp.where(later_I, rows_CI, 0).T @ error_CO
    return jax.lax.dynamic_update_slice_in_dim(weight_IO, weight_CO, start, 0)
