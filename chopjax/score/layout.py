"""Rows and batches for trees of known sizes: bin packing, and the choice of few good shapes."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable, Sequence

# Trees that are packed to try a row length; all of them are, once it is chosen.
SAMPLE = 4096


@dataclasses.dataclass(frozen=True)
class Budget:
    """What one forward pass may hold, and what its parts cost relative to each other.

    tokens: in a batch, at most, unless one row needs more: rows may be as long as the longest
    request and an eighth of `tokens` longer. shortest: the smallest row length.
    attention: the row length at which attention costs as much as the rest of the network. batch:
    tokens that could be computed in the time that starting a batch takes, shape: in that of a
    compilation. shards: the number of rows of a batch is a multiple of it.
    """

    tokens: int = 4096
    shortest: int = 32
    attention: float = 2048.0
    batch: int = 128
    shape: int = 32_768
    shards: int = 1


@dataclasses.dataclass(frozen=True, order=True)
class Shape:
    """What a compiled program is for. past: slots for the trunk's tokens, 0 without a trunk."""

    past: int
    length: int
    rows: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """A batch: the trees in each row, by index within their group."""

    shape: Shape
    group: int
    rows: tuple[tuple[int, ...], ...]


def lay_out(groups: Sequence[Sequence[int]], pasts: Sequence[int], budget: Budget) -> list[Layout]:
    """Batches for groups of trees, given by their sizes; a batch holds trees of one group.

    pasts: tokens of each group's trunk. Row lengths are the few with which all the work is least,
    compilation included: a dynamic program over the allowed lengths, each of which may take the
    trees that are too large for the one before.
    """
    lengths = _lengths(budget, max(max(group) for group in groups))
    samples = [_sample(group, max(16, SAMPLE // len(groups))) for group in groups]
    is_there = [_presence(group) for group in groups]
    best: list[tuple[float, list[tuple[int, int, int]]]] = [(0.0, [])]
    for stop in range(1, len(lengths) + 1):
        options = []
        for start in range(stop):
            above, length = lengths[start - 1] if start else 0, lengths[stop - 1]
            rows = [
                # A tree that the sample lacks needs a row all the same.
                max(math.ceil(share * len(fill(sample, above, length))), there(above, length))
                for (sample, share), there in zip(samples, is_there, strict=True)
            ]
            if not any(rows):
                options.append(best[start])
                continue
            work, height = _height(rows, length, budget)
            work += best[start][0] + budget.shape * min(len(set(pasts)), 4)
            options.append((work, [*best[start][1], (above, length, height)]))
        best.append(min(options))
    chosen = best[-1][1]
    rows_of = {span: [fill(sizes, span[0], span[1]) for sizes in groups] for span in chosen}
    slots = [sum(len(rows_of[s][g]) * s[1] for s in chosen) for g in range(len(groups))]
    past_of = past_lengths(dict(zip(pasts, slots, strict=True)), len(chosen), budget)
    return [
        Layout(Shape(past_of[pasts[group]], length, height), group, tuple(rows[at : at + height]))
        for above, length, height in chosen
        for group, rows in enumerate(rows_of[above, length, height])
        for at in range(0, len(rows), height)
    ]


def _sample(sizes: Sequence[int], most: int) -> tuple[list[int], float]:
    """Some of the sizes, spread evenly, and how many each of them stands for."""
    ascending = sorted(sizes)
    chosen = ascending[:: math.ceil(len(ascending) / most)]
    return chosen, len(ascending) / len(chosen)


def _presence(sizes: Sequence[int]) -> Callable[[int, int], bool]:
    """Whether any size is above the first and up to the second of two numbers."""
    ascending = sorted(sizes)

    def there(above: int, most: int) -> bool:
        return bisect.bisect(ascending, above) < bisect.bisect(ascending, most)

    return there


def _height(rows: Sequence[int], length: int, budget: Budget) -> tuple[float, int]:
    """(work in tokens, rows of a batch) for groups of so many rows, at the best height."""
    most = max(budget.shards, budget.tokens // length // budget.shards * budget.shards)
    heights = {most >> halvings for halvings in range(most.bit_length())}
    # As high as it takes to spread a group's rows evenly over the fewest batches.
    heights |= {math.ceil(group / math.ceil(group / most)) for group in rows if group}
    options = []
    for height in {math.ceil(height / budget.shards) * budget.shards for height in heights}:
        batches = sum(math.ceil(group / height) for group in rows)
        work = height * length * (1 + length / budget.attention) + budget.batch
        options.append((batches * work, height))
    return min(options)


def fill(sizes: Sequence[int], above: int, capacity: int) -> list[tuple[int, ...]]:
    """Bin packing, best fit decreasing: of the rows with room the fullest takes the next tree."""
    chosen = [index for index, size in enumerate(sizes) if above < size <= capacity]
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free, row), ascending
    for index in sorted(chosen, key=lambda i: -sizes[i]):
        place = bisect.bisect_left(room, (sizes[index], -1))
        if place == len(room):
            free, row = capacity, len(rows)
            rows.append([])
        else:
            free, row = room.pop(place)
        rows[row].append(index)
        bisect.insort(room, (free - sizes[index], row))
    return [tuple(row) for row in rows]


def past_lengths(slots: dict[int, int], lengths: int, budget: Budget) -> dict[int, int]:
    """Trunk length → slots that its past gets: as few different ones as are worth compiling.

    slots: trunk length → tokens that will look at it. lengths: row lengths that each past meets.
    Dynamic program over the rounded trunk lengths: a past of its own for the trunks up to each.
    """
    depths = sorted(depth for depth in slots if depth)
    rounded = [row_length(depth, budget) for depth in depths]
    best: list[tuple[float, list[int]]] = [(0.0, [])]  # for the first n depths
    for stop in range(1, len(depths) + 1):
        options = []
        for start in range(stop):
            seen = sum(slots[depth] for depth in depths[start:stop])
            work = best[start][0] + 2 * seen * rounded[stop - 1] / budget.attention
            options.append((work + budget.shape * lengths, [*best[start][1], rounded[stop - 1]]))
        best.append(min(options))
    chosen = best[-1][1]
    return {depth: chosen[bisect.bisect_left(chosen, depth)] if depth else 0 for depth in slots}


def row_length(size: int, budget: Budget) -> int:
    """The smallest allowed length that holds `size` slots.

    Multiples of half the shortest one and of a quarter of the power of two below: four lengths for
    every doubling, a quarter of a row empty at most.
    """
    octave = 1 << (max(size - 1, 1).bit_length() - 1)
    step = max(budget.shortest // 2, octave // 4, 1)
    return max(budget.shortest, -(-size // step) * step)


def _lengths(budget: Budget, longest: int) -> list[int]:
    lengths = [budget.shortest]
    while lengths[-1] < longest:
        lengths.append(row_length(lengths[-1] + 1, budget))
    return lengths
