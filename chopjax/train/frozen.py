"""What a step reads and does not move: adapters' base, a teacher. Read at every start of a run, in
no checkpoint."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from chopjax.checkpoint.describe import Description
from chopjax.checkpoint.load import load
from chopjax.chop.surgery import chop_tree
from chopjax.keep import Keep
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import Params
from chopjax.progress import say
from chopjax.train.base import read_base
from chopjax.train.settings import Settings
from chopjax.train.step import shardings_of
from chopjax.train.task import Task
from chopjax.train.teacher import Teacher


def read_frozen(
    task: Task,
    settings: Settings,
    model: ModelConfig,
    keep: Keep | None,
    student: Description | None,
    taught_by: tuple[Teacher, Description] | None,
    params: Params | None,
) -> dict[str, Any]:
    """The arrays that task.frozen describes.

    model: the student as it is now; keep: its layers of what it is read from, None for all.
    params: what would be read of it, in memory already.
    """
    wanted = task.frozen
    frozen: dict[str, Any] = {}
    if "base" in wanted:
        frozen["base"] = read_base(settings, student, keep, wanted["base"], params)
    if "rows" in wanted:
        frozen["teacher"] = read_base(settings, student, None, wanted["teacher"], None)
        assert taught_by is not None
        frozen["rows"] = _rows(taught_by[0], model, wanted["rows"])
    elif "teacher" in wanted:
        assert taught_by is not None
        say(f"loading the teacher, {taught_by[0].name}")
        dtype = jax.tree.leaves(wanted["teacher"])[0].dtype
        where = shardings_of(wanted["teacher"])
        frozen["teacher"] = load(taught_by[1], shardings=where, dtype=dtype).params
    return frozen


def chop_frozen(
    frozen: dict[str, Any], task: Task, model: ModelConfig, keep: Keep, teacher: Teacher | None
) -> dict[str, Any]:
    """The same when the student loses layers; task and model: those after it."""
    chopped = dict(frozen)
    if "base" in frozen:
        chopped["base"] = chop_tree(frozen["base"], keep)
    if "rows" in frozen:
        assert teacher is not None
        chopped["rows"] = _rows(teacher, model, task.frozen["rows"])
    return chopped


def _rows(teacher: Teacher, model: ModelConfig, abstract: Any) -> jax.Array:
    """Which of the teacher's layers each of the student's is."""
    layers = teacher.layers_of(model.num_layers)
    assert layers is not None
    rows: jax.Array = jax.device_put(np.array(layers, np.int32), abstract.sharding)
    return rows
