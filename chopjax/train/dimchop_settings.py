"""dimchop: whether columns of the blocks' matrices are masked while training goes on. No jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal


@dataclasses.dataclass(frozen=True)
class DimChopSettings:
    """DimCHOP (arXiv 2305.14864, section 3.2): in every matrix of the blocks the same share of
    columns is masked, which grows, and the columns are chosen again every few steps. The paper
    gives no numbers: schedule and defaults are PLATON's (arXiv 2206.12562)."""

    final: float = 0.0  # share of each matrix's columns that is masked in the end; 0: no DimCHOP
    start: int = 0  # steps before the first column is masked
    end: int = 0  # the step by which the share is `final`; from there on every step masks
    interval: int = 10  # steps from one choice of columns to the next
    beta1: float = 0.85  # decay of the mean of |weight x gradient|
    beta2: float = 0.95  # decay of the mean distance of |weight x gradient| from that mean
    columns: Literal["input", "output"] = "input"  # which side of a matrix a column belongs to

    def problems(
        self, total_steps: int, adapters: bool, fixed: bool, looked_at: Mapping[str, int]
    ) -> list[str]:
        """What is wrong, one sentence each. fixed: whether zeros that there are stay. looked_at:
        setting → steps from one time that the model is evaluated or saved to the next."""
        if self == DimChopSettings():
            return []
        final, start, end, interval = self.final, self.start, self.end, self.interval
        checks = {
            f"final is {final}: above 0 and below 1, where dimchop is set": 0 < final < 1,
            f"start is {start} and end {end}: 0 <= start < end <= total_steps": (
                0 <= start < end <= total_steps
            ),
            f"interval is {interval}: at least 1, and at most end": 1 <= interval <= end,
            "beta1 and beta2 lie in [0, 1)": 0 <= self.beta1 < 1 and 0 <= self.beta2 < 1,
            "adapter.rank must be 0; adapters do not train the matrices that columns go from": (
                not adapters
            ),
            "masks must be none; fixed keeps the zeros that there are, wherever they are": (
                not fixed
            ),
        }
        odd = [
            f"{name} is {steps}: no multiple of dimchop.interval {interval}; between choices the "
            "columns that were masked grow back"
            for name, steps in looked_at.items()
            if interval > 0 and steps % interval
        ]
        return [f"dimchop: {message}" for message, holds in checks.items() if not holds] + odd
