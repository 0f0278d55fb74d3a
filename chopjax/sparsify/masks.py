"""Which weights of a matrix go: by their size alone, or times their input's (Wanda).

A matrix is [I, O], inputs by outputs: the transpose of what most families have in their files. True
in a mask: the weight becomes zero. Of equal scores the first go.

Axes: I inputs, O outputs, M inputs of a group, G groups.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from chopjax.sparsify.pattern import Pattern


@functools.partial(jax.jit, static_argnames="pattern")
def magnitude(weight_IO: jax.Array, pattern: Pattern) -> jax.Array:
    """[I, O] bool: |W| is small, in its group or in the whole matrix."""
    size_IO = jnp.abs(weight_IO.astype(jnp.float32))
    if pattern.group is None:
        return smallest(size_IO, pattern.count(size_IO.size))
    return smallest_in_groups(size_IO, pattern)


@functools.partial(jax.jit, static_argnames="pattern")
def wanda(weight_IO: jax.Array, square_I: jax.Array, pattern: Pattern) -> jax.Array:
    """[I, O] bool: |W|·‖x‖₂ is small, in its group or among all inputs of an output
    (arXiv 2306.11695, eq. 1 and §3).

    square_I: Σ x² of every input over the calibration tokens.
    """
    score_IO = jnp.abs(weight_IO.astype(jnp.float32)) * jnp.sqrt(square_I)[:, None]
    if pattern.group is None:
        count = pattern.count(score_IO.shape[0])
        return jax.vmap(lambda column_I: smallest(column_I, count), 1, 1)(score_IO)
    return smallest_in_groups(score_IO, pattern)


def smallest(score: jax.Array, count: int) -> jax.Array:
    """Bool: the `count` smallest scores of an array."""
    order = jnp.argsort(score.reshape(-1), stable=True)
    mask = jnp.zeros(score.size, bool).at[order[:count]].set(True)
    return mask.reshape(score.shape)


def smallest_in_groups(score_IO: jax.Array, pattern: Pattern) -> jax.Array:
    """[I, O] bool: N of every M consecutive inputs. M divides I."""
    assert pattern.group is not None
    score_GMO = score_IO.reshape(-1, pattern.group, score_IO.shape[1])
    this, other = score_GMO[:, :, None], score_GMO[:, None]
    place_M = jnp.arange(pattern.group)
    earlier_MM = place_M[None] < place_M[:, None]
    # Counted and not sorted: groups are small, and many.
    before = (other < this) | ((other == this) & earlier_MM[None, :, :, None])
    rank_GMO = before.sum(axis=2, dtype=jnp.int32)
    return (rank_GMO < pattern.count(pattern.group)).reshape(score_IO.shape)
