"""Which part of an array each device of this process holds."""

from __future__ import annotations

import math

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
