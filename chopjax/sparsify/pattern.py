"""Where zeros may stand in a matrix. No jax."""

from __future__ import annotations

import dataclasses
import re

from chopjax.errors import UserError

MOST = 32  # of a group; every smaller power of two divides the block that SparseGPT works in


@dataclasses.dataclass(frozen=True)
class Pattern:
    """share: of the weights that go, more than 0 and less than 1. group: M of N:M, where N of
    every M consecutive inputs go; None: anywhere."""

    share: float
    group: int | None = None

    @property
    def name(self) -> str:
        if self.group is None:
            return str(self.share)  # all digits: work on another share is other work
        return f"{self.count(self.group)}:{self.group}"

    def count(self, weights: int) -> int:
        """How many of so many weights go."""
        return int(weights * self.share)


def parse_pattern(text: str) -> Pattern:
    """ "2:4", "4:8" or a share such as "0.5". Raises UserError for anything else."""
    if of_group := re.fullmatch(r"([0-9]{1,3}):([0-9]{1,3})", text.strip()):
        zeros, group = int(of_group[1]), int(of_group[2])
        if 2 * zeros != group or group & (group - 1) or not 2 <= group <= MOST:
            raise UserError(
                f"--pattern {text}: of N:M, 2:4 and 4:8 are known (and 1:2, 8:16, 16:32). Half of "
                "a group goes: some count what stays and some what goes, and this means both"
            )
        return Pattern(0.5, group)
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise UserError(
            f"--pattern {text!r}: 2:4, 4:8, or the share of the weights that go, such as 0.5"
        )
    return Pattern(share)
