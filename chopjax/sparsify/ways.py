"""How a matrix is changed: by its own weights, or by what it reads as well.

Axes: I inputs, O outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chopjax.errors import UserError
from chopjax.sparsify.masks import magnitude, wanda
from chopjax.sparsify.pattern import Pattern
from chopjax.sparsify.sparsegpt import sparsegpt


class Read(NamedTuple):
    """What a matrix reads. sums: Σ x² [I] or Σ xᵀx [I, I], as the way looks at inputs. factor_II:
    of the latter's `inverse_factor`."""

    sums: jax.Array
    factor_II: np.ndarray | None

    @property
    def dead_I(self) -> np.ndarray:
        """Inputs that are always zero, of Σ xᵀx."""
        dead_I: np.ndarray = np.asarray(self.sums).diagonal() == 0
        return dead_I


@dataclasses.dataclass(frozen=True)
class Way:
    """name: for people. looks: what of a matrix's inputs is summed over the text. change: (the
    matrix [I, O], what it reads, None where nothing is looked at, its name for messages) → what it
    becomes, of the same type."""

    name: str
    looks: Literal["nothing", "squares", "products"]
    change: Callable[[np.ndarray, Read | None, str], np.ndarray]


def way_of(method: str, pattern: Pattern) -> Way:
    """Zeros by a method of matrices.METHODS."""

    def by_size(weight_IO: np.ndarray, read: Read | None, where: str) -> np.ndarray:
        return _without(weight_IO, magnitude(jnp.asarray(weight_IO), pattern))

    def by_norm(weight_IO: np.ndarray, read: Read | None, where: str) -> np.ndarray:
        assert read is not None
        return _without(weight_IO, wanda(jnp.asarray(weight_IO), read.sums, pattern))

    def by_hessian(weight_IO: np.ndarray, read: Read | None, where: str) -> np.ndarray:
        assert read is not None
        made_IO = sparsegpt(jnp.asarray(weight_IO), read.dead_I, read.factor_II, pattern)
        advice = "give more text (--sequences), or take --method wanda"
        return rounded(np.asarray(made_IO), weight_IO.dtype, where, "SparseGPT", advice)

    name = f"{method} {pattern.name}"
    if method == "magnitude":
        return Way(name, "nothing", by_size)
    if method == "wanda":
        return Way(name, "squares", by_norm)
    return Way(name, "products", by_hessian)


def _without(weight_IO: np.ndarray, zeros_IO: Any) -> np.ndarray:
    """What stays keeps its bits."""
    return np.where(np.asarray(zeros_IO), weight_IO.dtype.type(0), weight_IO)


def rounded(
    wide_IO: np.ndarray, dtype: np.dtype[Any], where: str, who: str, advice: str
) -> np.ndarray:
    """In the type that the matrix had. Raises UserError where it is too narrow for what a method
    made."""
    with np.errstate(over="ignore", invalid="ignore"):
        narrow_IO = wide_IO.astype(dtype)
    if not np.isfinite(narrow_IO.astype(np.float32)).all():
        raise UserError(f"{where}: what {who} makes of it does not fit {dtype}; {advice}")
    return narrow_IO
