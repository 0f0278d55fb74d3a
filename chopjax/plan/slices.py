"""Which TPU slices there are, and Cloud's names for them: its v5p-128 is v5p:4x4x4.

Sources: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, and the accelerator types that gcloud lists.
"""

from __future__ import annotations

import itertools
import math

Sides = tuple[int, ...]

FLAT: tuple[Sides, ...] = (
    (1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16),
)  # fmt: skip
# Smaller than a cube of 64 chips; above it, every box whose sides are multiples of the cube's.
PARTS_OF_A_CUBE: tuple[Sides, ...] = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
CUBE = 4


def spelled(sides: Sides) -> str:
    """(4, 4, 8) → "4x4x8"."""
    return "x".join(map(str, sides))


def exists(sides: Sides, largest: int) -> bool:
    """Whether Cloud has slices of this shape. largest: chips of the largest slice."""
    if len(sides) == 2:
        return sides in FLAT
    if sides in PARTS_OF_A_CUBE:
        return True
    cubes = all(side % CUBE == 0 and side > 0 for side in sides)
    return cubes and list(sides) == sorted(sides) and math.prod(sides) <= largest


def usual_shape(chips: int, dimensions: int, largest: int) -> Sides | None:
    """The shape of so many chips where none is asked for: as near to a cube as there is."""
    for sides in FLAT if dimensions == 2 else PARTS_OF_A_CUBE:
        if math.prod(sides) == chips:
            return sides
    if dimensions == 2 or chips % CUBE**3 or not 0 < chips <= largest:
        return None
    cubes = chips // CUBE**3
    boxes = [
        (a, b, cubes // (a * b))
        for a, b in itertools.combinations_with_replacement(range(1, math.isqrt(cubes) + 1), 2)
        if cubes % (a * b) == 0 and b <= cubes // (a * b)
    ]
    return tuple(CUBE * side for side in min(boxes, key=sum))


def described(chip: str, dimensions: int, cloud_name: str, counts: int, largest: int) -> str:
    """All slices of a chip, for a refusal. counts: what Cloud's number counts on one chip."""
    small = FLAT if dimensions == 2 else PARTS_OF_A_CUBE
    shapes = ", ".join(map(spelled, small))
    numbers = ", ".join(str(counts * math.prod(sides)) for sides in small)
    if dimensions == 2:
        return f"{chip} has {shapes} ({cloud_name}-N with N = {numbers})"
    cube = counts * CUBE**3
    return (
        f"{chip} has {shapes} and every AxBxC of multiples of {CUBE}, the shortest side first, up "
        f"to {largest:,} chips ({cloud_name}-N with N = {numbers}, or a multiple of {cube} up to "
        f"{counts * largest})"
    )
