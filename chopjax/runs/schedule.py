"""When layers go: all at once, or in rounds with healing in between. No jax.

Just CHOP found a gap between removals to gain nothing (arXiv 2305.14864, removal schedule);
Minitron advises to take at most a third of the layers a round (arXiv 2407.14679).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from chopjax.errors import UserError
from chopjax.keep import Keep, removed


class Schedule(NamedTuple):
    rounds: int
    steps: int  # updates after every round but the last


ONCE = Schedule(1, 0)


def parse_schedule(text: str) -> Schedule:
    """ "once", or "3x200": three rounds, 200 steps of healing between them."""
    if text.strip() == "once":
        return ONCE
    match = re.fullmatch(r"\s*(\d{1,9})\s*x\s*(\d{1,9})\s*", text)
    if not match or int(match[1]) < 2 or int(match[2]) < 1:
        raise UserError(
            f"schedule {text!r}: give 'once', or ROUNDSxSTEPS, two rounds at least: 3x200 is three "
            "rounds with 200 steps of healing between them"
        )
    return Schedule(int(match[1]), int(match[2]))


def shares(remove: int, rounds: int) -> tuple[int, ...]:
    """How many layers go in each round: as evenly as can be, the larger rounds first."""
    if rounds > remove:
        raise UserError(
            f"schedule: {rounds} rounds and {remove} layers to remove; "
            f"at most {remove} rounds take a layer each"
        )
    size, more = divmod(remove, rounds)
    return tuple(size + (number < more) for number in range(rounds))


def split_keep(keep: Keep, num_layers: int, rounds: int) -> tuple[Keep, ...]:
    """The keep list of every round, numbered as the model of that round is. The layers next to the
    input go first; after the last round those of `keep` are left."""
    left, gone = list(range(num_layers)), list(removed(keep, num_layers))
    keeps = []
    for count in shares(len(gone), rounds):
        going, gone = gone[:count], gone[count:]
        keeps.append(tuple(place for place, layer in enumerate(left) if layer not in going))
        left = [layer for layer in left if layer not in going]
    return tuple(keeps)
