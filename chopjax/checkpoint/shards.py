"""Which part of an array each device of this process holds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

from jax.sharding import Sharding, SingleDeviceSharding

Index = tuple[tuple[int, int], ...]  # first and one past the last, of every axis


# jax.make_array_from_callback would read a shard once a device, and hold all of a parameter's
# shards on the host at once.
def shards_of(sharding: Sharding, shape: tuple[int, ...]) -> dict[Index, list[Sharding]]:
    """The distinct parts of an array that this process holds, and the devices for each."""
    shards: dict[Index, list[Sharding]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = [part.indices(size) for part, size in zip(index or (), shape, strict=True)]
        key = tuple((start, stop) for start, stop, _ in bounds)
        place = SingleDeviceSharding(device, memory_kind=sharding.memory_kind)
        shards.setdefault(key, []).append(place)
    return shards


def volume(index: Index) -> int:
    return math.prod(stop - start for start, stop in index)


def overlap(one: Index, other: Index) -> Index | None:
    """What both have."""
    bounds = [(max(a, b), min(c, d)) for (a, c), (b, d) in zip(one, other, strict=True)]
    return tuple(bounds) if all(start < stop for start, stop in bounds) else None


def within(part: Index, whole: Index) -> tuple[slice, ...]:
    """Where a part lies in an array that begins where `whole` does."""
    return tuple(
        slice(start - first, stop - first)
        for (start, stop), (first, _) in zip(part, whole, strict=True)
    )


def joined(parts: Iterable[Index]) -> list[Index]:
    """Disjoint parts as the fewest that neighbours make together, no element more."""
    left = list(parts)
    for one, other in itertools.combinations(left, 2):
        apart = [axis for axis, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
        if len(apart) == 1 and _touch(one[apart[0]], other[apart[0]]):
            hull = tuple((min(a, b), max(c, d)) for (a, c), (b, d) in zip(one, other, strict=True))
            return joined([*(part for part in left if part not in (one, other)), hull])
    return left


def _touch(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[1] == other[0] or other[1] == one[0]
