"""Learned maps from the student's width to the teacher's, where the two differ.

They stand beside the student's parameters under the key `projections`: trained and saved with it,
absent from exports. What is of a layer stands below `blocks` there, so that a chop cuts it.

Axes: L the student's layers, D its width, E its embedding table's, M the teacher's.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from chopjax.checkpoint.orbax_folder import PROJECTIONS
from chopjax.errors import UserError
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import Params
from chopjax.train.settings import TeacherSettings

Shapes = dict[str, tuple[int, ...]]  # path below the key → shape, the last two from and to


def shapes(student: ModelConfig, teacher: ModelConfig, asked: TeacherSettings) -> Shapes:
    """Those that the terms need. Raises UserError for a term that compares streams as they are."""
    found: Shapes = {}
    width, wanted = student.embed_dim, teacher.embed_dim
    if width != wanted:
        if asked.mimic:
            raise UserError(
                f"teacher.mimic: the student's width is {width} and the teacher's {wanted}; the "
                "term is for a chop and its parent. teacher.hidden learns a map between the two"
            )
        for name in ("hidden", "attention"):
            if getattr(asked, name):
                found[f"blocks/{name}"] = (student.num_layers, width, wanted)
    if asked.embedding and student.table_dim != teacher.table_dim:
        found["embedding"] = (student.table_dim, teacher.table_dim)
    return found


def abstract(shapes: Shapes, mesh: Mesh) -> dict[str, Any]:
    """{PROJECTIONS: shapes, dtypes and shardings}; {} for none. The width is split over fsdp."""

    def placed(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        split = "fsdp" if shape[-2] % mesh.shape["fsdp"] == 0 else None
        spec = PartitionSpec(*[None] * (len(shape) - 2), split, None)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    return _under({path: placed(shape) for path, shape in shapes.items()})


def init(shapes: Shapes, key: jax.Array) -> Params:
    """Normal with deviation 1/√D: what they make is as large as what they are given."""
    keys = jax.random.split(key, max(len(shapes), 1))
    return _under(
        {
            path: jax.random.normal(each, shape) / math.sqrt(shape[-2])
            for each, (path, shape) in zip(keys, shapes.items(), strict=False)
        }
    )


def of(params: Params) -> Params:
    """Those that stand beside a student's parameters."""
    found: Params = params.get(PROJECTIONS, {})
    return found


def count(shapes: Shapes) -> int:
    """Numbers in all of them."""
    return sum(map(math.prod, shapes.values()))


def training_per_token(shapes: Shapes) -> int:
    """FLOPs of a token, forward and backward; tables are multiplied once a step, not counted."""
    return sum(6 * math.prod(shape) for path, shape in shapes.items() if path != "embedding")


def _under(flat: dict[str, Any]) -> dict[str, Any]:
    return {PROJECTIONS: unflatten_dict(flat, sep="/")} if flat else {}
