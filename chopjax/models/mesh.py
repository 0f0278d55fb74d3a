"""The device mesh, and one table of which mesh axis holds which axis of a parameter.

Mesh axes, outermost first: `slice` (across TPU slices, over the data-centre network), `data`
(copies of the parameters), `fsdp` (parameters and optimizer state in parts, gathered block by
block), `tensor` (heads, feed-forward and vocabulary in parts). The batch is split over the first
three. All four exist always, most of them of size one, so that no other module asks which do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.experimental import mesh_utils
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from chopjax.errors import UserError, listing
from chopjax.models import parameters
from chopjax.models.config import ModelConfig

AXES = ("slice", "data", "fsdp", "tensor")
BATCH_AXES = ("slice", "data", "fsdp")
HEAD_AXIS = "tensor"

Axes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where an axis of a parameter goes: a mesh axis, or None for whole on every device.

    whole_if_uneven: an axis whose size the mesh axis does not divide stays whole on every device.
    Where this is not set, such a size is an error.
    """

    mesh_axis: str | None
    whole_if_uneven: bool = False


# The letters are those of models/parameters.py. There is no catch-all: a letter that is not here
# is an error.
SHARDING_RULES: Mapping[str, Rule] = {
    "L": Rule(None),  # the scan walks over it
    "D": Rule("fsdp"),
    "N": Rule("tensor"),
    # Multi-query attention has one key/value head, grouped-query few: every tensor shard then
    # computes the keys and values that its query heads read.
    "K": Rule("tensor", whole_if_uneven=True),
    "H": Rule(None),
    "F": Rule("tensor"),
    # Every device has its part of every expert, so that no token travels to one: D and F are split
    # already, and a mesh axis takes one letter.
    "X": Rule(None),
    # GPT-2's 50,257 divides by no mesh worth having.
    "V": Rule("tensor", whole_if_uneven=True),
    "E": Rule(None),  # OPT-350m alone has it, narrow and beside D
    "P": Rule(None),
    "R": Rule(None),  # an adapter's rank
}


def resolve_sizes(
    number: int, data: int = -1, fsdp: int = 1, tensor: int = 1, slices: int = 1
) -> dict[str, int]:
    """Mesh axis → size, for so many devices. One size may be -1: what the others leave.

    Raises UserError where the sizes do not multiply to the number of devices.
    """
    sizes = {"slice": slices, "data": data, "fsdp": fsdp, "tensor": tensor}
    asked = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(open_axes) > 1 or fixed < 1 or min(sizes.values()) < -1:
        raise UserError(f"mesh: {asked}: sizes are positive, and one of them may be -1")
    for axis in open_axes:
        sizes[axis] = number // fixed
    if math.prod(sizes.values()) != number:
        raise UserError(
            f"mesh: {asked} does not make {number}, the number of devices here; "
            "set mesh.data, mesh.fsdp and mesh.tensor so that their product is that number"
        )
    return sizes


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    slices: int = 1,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """A mesh over all devices (or those given). One size may be -1: what the others leave.

    Axis types are Auto: shardings are stated for parameters and batches, the compiler propagates
    them. Raises UserError where the sizes do not multiply to the number of devices, and where
    they do not follow the sides of a TPU slice. Over several devices that are processors it turns
    jax's cache of compiled programs off.
    """
    devices = jax.devices() if devices is None else devices
    shape = tuple(resolve_sizes(len(devices), data, fsdp, tensor, slices).values())
    types = (AxisType.Auto,) * len(AXES)
    if math.prod(shape) == 1 or devices[0].platform == "cpu":
        if math.prod(shape) > 1:
            _turn_off_compilation_cache()
        return Mesh(np.array(devices).reshape(shape), AXES, axis_types=types)
    try:
        if slices > 1 and hasattr(devices[0], "slice_index"):
            grid = mesh_utils.create_hybrid_device_mesh(
                (1, *shape[1:]), (slices, 1, 1, 1), devices=devices
            )
            return Mesh(grid, AXES, axis_types=types)
        return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
    except NotImplementedError as error:
        asked = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, shape, strict=True))
        sides = [max(device.coords[d] for device in devices) + 1 for d in range(3)]
        raise UserError(
            f"mesh: {asked} does not follow the sides of this TPU slice, "
            f"{' x '.join(map(str, sides))}: every size must be a product of some of them"
        ) from error


def _turn_off_compilation_cache() -> None:
    """XLA reads a processor's program back without the order of its collectives inside and outside
    of loops (jaxlib 0.10.2): devices then wait for each other until XLA ends the process."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # else what was decided at the first program stays


def partition(dims: str, sizes: Mapping[str, int], mesh_shape: Mapping[str, int]) -> PartitionSpec:
    """The spec of an array with axes `dims` ("L D N H").

    Raises ValueError for a letter without a rule, for one mesh axis used twice, and for sizes that
    do not divide.
    """
    spec: list[str | None] = []
    for letter in dims.split():
        if letter not in SHARDING_RULES:
            raise ValueError(f"axis {letter} has no sharding rule")
        rule = SHARDING_RULES[letter]
        axis = rule.mesh_axis
        if axis is not None and sizes[letter] % mesh_shape[axis]:
            if not rule.whole_if_uneven:
                raise ValueError(
                    f"axis {letter} of size {sizes[letter]} does not divide by mesh axis "
                    f"{axis} of size {mesh_shape[axis]}"
                )
            axis = None
        if axis is not None and axis in spec:
            raise ValueError(f"axis {letter} would take mesh axis {axis} a second time")
        spec.append(axis)
    return PartitionSpec(*spec)


def specs(config: ModelConfig, mesh_shape: Mapping[str, int]) -> dict[str, PartitionSpec]:
    """Parameter path → spec. Raises UserError that names every parameter that does not fit."""
    sizes = parameters.sizes(config)
    result: dict[str, PartitionSpec] = {}
    problems: dict[str, list[str]] = {}
    for path, dims in parameters.axes(config).items():
        try:
            result[path] = partition(dims, sizes, mesh_shape)
        except ValueError as problem:
            problems.setdefault(str(problem), []).append(path)
    if problems:
        lines = [f"{problem}: {', '.join(paths)}" for problem, paths in problems.items()]
        raise UserError(f"the model does not fit the mesh:\n{listing(lines)}")
    return result


def shardings(config: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    """A NamedSharding for every parameter, in the parameters' nested dict."""
    flat = specs(config, mesh.shape)
    named = {path: NamedSharding(mesh, spec) for path, spec in flat.items()}
    nested: dict[str, Any] = unflatten_dict(named, sep="/")
    return nested


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over slice, data and fsdp; for arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def describe(config: ModelConfig, mesh: Mesh | AbstractMesh) -> str:
    """One line for people: the mesh, and what stays whole though a rule would split it."""
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    line = f"mesh: {shape or 'one device'}"
    sizes = parameters.sizes(config)
    for letter, rule in SHARDING_RULES.items():
        axis = rule.mesh_axis
        if axis and rule.whole_if_uneven and sizes[letter] % mesh.shape[axis]:
            line += f"; {letter} of {sizes[letter]} stays whole on the {axis} axis"
    return line


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
    constrained: jax.Array = jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))
    return constrained


def on_processors() -> bool:
    """Whether the program that is being traced is for CPUs: what is here says so, and so does the
    mesh in force, whose devices need not be here (chopjax/plan)."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() == "cpu" and (device is None or device.platform == "cpu")


def scatters_gradients() -> bool:
    """Whether the program that is being traced is for TPUs and sums gradients along `fsdp` to parts
    of them: along all chips of a slice the compiler has none but all-reduces (libtpu 0.0.52).
    Meshes with a tensor axis, which parts the widths, were not looked at and are left alone."""
    mesh = jax.sharding.get_abstract_mesh()
    device = mesh.abstract_device
    if device is None or device.platform != "tpu" or mesh.shape.get("tensor", 1) > 1:
        return False
    along, chips = int(mesh.shape.get("fsdp", 1)), int(mesh.size) // mesh.shape.get("slice", 1)
    return bool(1 < along < chips)
