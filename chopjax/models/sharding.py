"""Hints to the compiler about where activations lie, where a mesh is in force."""

from __future__ import annotations

import math

import jax
from jax.sharding import PartitionSpec

Axes = str | tuple[str, ...] | None


def constrain(x: jax.Array, *places: Axes) -> jax.Array:
    """Ask that the leading axes of x lie over these mesh axes, the others whole.

    Without a mesh this is x. Mesh axes that there are not, or that do not divide the size, are
    left out.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec: list[tuple[str, ...] | None] = []
    for size, place in zip(x.shape, places, strict=False):
        names = (place,) if isinstance(place, str) else place or ()
        present = tuple(name for name in names if name in mesh.axis_names)
        divides = size % math.prod(mesh.shape[name] for name in present) == 0
        spec.append(present if present and divides else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))
