"""Is a difference between two models more than luck in the choice of documents? Paired bootstrap.

Axes: D documents, C summed columns, B resamples, K distinct rows.
"""

from __future__ import annotations

import numpy as np

from chopjax.report.results_file import Items

RESAMPLES = 10_000
SEED = 1234
_CHUNK = 1 << 22  # drawn numbers at a time


def differences(base: Items, other: Items) -> np.ndarray:
    """Resampled values of metric(other) - metric(base), [B]: the same documents, drawn with
    replacement, for both. The documents have to be the same in the same order."""
    columns_DC = np.concatenate([base.columns_DC, other.columns_DC], axis=1)
    width = base.columns_DC.shape[1]
    sums_BC = _resampled_sums(columns_DC)
    return other.statistic(sums_BC[:, width:]) - base.statistic(sums_BC[:, :width])


def _resampled_sums(columns_DC: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(SEED)
    count = len(columns_DC)
    rows_KC, times_K = np.unique(columns_DC, axis=0, return_counts=True)
    if len(rows_KC) <= 64:
        # Right or wrong, by two models: only how often each row is drawn matters.
        drawn_BK = rng.multinomial(count, times_K / count, size=RESAMPLES)
        sums_BC: np.ndarray = drawn_BK @ rows_KC
        return sums_BC
    parts = []
    step = max(1, _CHUNK // count)
    for start in range(0, RESAMPLES, step):
        size = (min(step, RESAMPLES - start), count)
        parts.append(columns_DC[rng.integers(0, count, size)].sum(axis=1))
    return np.concatenate(parts)


def interval(drawn_B: np.ndarray) -> tuple[float, float]:
    """Of the difference, 95 %: from the 2.5th to the 97.5th percentile."""
    low, high = np.quantile(drawn_B, (0.025, 0.975))
    return float(low), float(high)


def p_value(drawn_B: np.ndarray) -> float:
    """Two-sided: how often resampling turns the sign of the difference, or makes it vanish."""
    smaller = min(np.count_nonzero(drawn_B <= 0), np.count_nonzero(drawn_B >= 0))
    return min(1.0, 2 * (smaller + 1) / (len(drawn_B) + 1))
