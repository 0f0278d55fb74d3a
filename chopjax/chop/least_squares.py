"""The map that brings what a layer adds nearest to what is missing, from sums alone. No jax.

Of every token: x, what is mapped, and r, what the stream lacks behind it (E - S). Sought are Δ and
b with x·Δ + b ≈ r; the map is T = I + Δ (ReplaceMe, arXiv 2505.02819, whose target is
E - S + M for T itself: the same T, and the ridge pulls towards the identity rather than zero).

Sums are float64: a few tokens' states are a thousand times as large as all others, and float32
would lose those. Axes: N tokens, D model.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass
class Sums:
    """Running sums over tokens. Memory: two [D, D] arrays of float64, or [D] where diagonal."""

    diagonal: bool
    tokens: int = 0
    xx: np.ndarray | float = 0.0  # Σ xᵀx: [D, D], or [D] where diagonal
    xr: np.ndarray | float = 0.0  # Σ xᵀr
    x: np.ndarray | float = 0.0  # Σ x, [D]
    r: np.ndarray | float = 0.0  # Σ r, [D]

    def add(self, x_ND: np.ndarray, r_ND: np.ndarray) -> None:
        """float64, no filling among the tokens."""
        if self.diagonal:
            self.xx += (x_ND * x_ND).sum(axis=0)
            self.xr += (x_ND * r_ND).sum(axis=0)
        else:
            self.xx += x_ND.T @ x_ND
            self.xr += x_ND.T @ r_ND
        self.x += x_ND.sum(axis=0)
        self.r += r_ND.sum(axis=0)
        self.tokens += len(x_ND)


def solve(sums: Sums, affine: bool, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """(Δ, b): minimises Σ |x·Δ + b - r|² + λ|Δ|², λ = ridge · the mean of the Gram matrix's
    diagonal. Δ is [D, D], or [D] where diagonal; b is zero unless affine.

    affine: the sums are centred first, so that b, which costs nothing, is the means' difference.
    ridge 0: of several solutions (fewer tokens than D, or channels that are always zero) the one
    nearest to the identity.
    """
    gram, cross = np.asarray(sums.xx), np.asarray(sums.xr)
    mean_x, mean_r = np.asarray(sums.x) / sums.tokens, np.asarray(sums.r) / sums.tokens
    if affine:
        outer = np.multiply if sums.diagonal else np.multiply.outer
        gram = gram - sums.tokens * outer(mean_x, mean_x)
        cross = cross - sums.tokens * outer(mean_x, mean_r)
    diagonal = gram if sums.diagonal else gram.diagonal()
    penalty = ridge * float(diagonal.mean())
    if sums.diagonal:
        change = _divided(cross, gram + penalty)
        constant = mean_r - mean_x * change
    else:
        change = _solved(gram, cross, penalty)
        constant = mean_r - mean_x @ change
    return change, constant if affine else np.zeros_like(mean_r)


def _divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Zero where nothing is known."""
    known = below > len(below) * np.finfo(np.float64).eps * below.max(initial=0.0)
    quotient: np.ndarray = np.where(known, above / np.where(known, below, 1.0), 0.0)
    return quotient


def _solved(gram: np.ndarray, cross: np.ndarray, penalty: float) -> np.ndarray:
    if penalty > 0:
        ridged = gram.copy()
        ridged[np.diag_indices_from(ridged)] += penalty
        solution: np.ndarray = np.linalg.solve(ridged, cross)
        return solution
    values, vectors = np.linalg.eigh(gram)
    nearest: np.ndarray = vectors @ (_reciprocals(values)[:, None] * (vectors.T @ cross))
    return nearest


def _reciprocals(values: np.ndarray) -> np.ndarray:
    return _divided(np.ones_like(values), values)
