"""A model in numbers: its tensors with the layers collapsed, parameters and bytes. No jax."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

from chopjax.checkpoint.describe import CHECKPOINTS, Description
from chopjax.checkpoint.dtypes import stated_dtype, tensor_dtypes
from chopjax.checkpoint.safetensors_file import DTYPES
from chopjax.checkpoint.source import Checkpoint
from chopjax.models import parameters
from chopjax.models.config import ModelConfig
from chopjax.models.families.table import bind


def summary(found: Description) -> dict[str, Any]:
    """Values that JSON can hold.

    tensors: one entry a kind of tensor, with the number of layers that have it. Bytes and types
    are those of the files; of a training run, those that export would write.
    """
    tensors = _tensors(found)
    shapes = parameters.shapes(found.config)
    tables = ("embed/embedding", "embed/positions", "head/kernel")
    per_layer = parameters.count_per_layer(found.config)
    return {
        "model": found.name,
        "revision": found.revision,
        "kind": _kind(found),
        "family": found.family.model_type,
        "config": _config(found.config),
        "dtype": stated_dtype(found.raw_config),
        "parameters": {
            "total": parameters.count(found.config),
            "per_layer": per_layer,
            "blocks": per_layer * found.config.num_layers,
            "embeddings": sum(math.prod(shapes[path]) for path in tables if path in shapes),
        },
        "bytes": sum(row["bytes"] for row in tensors),
        "tensors": tensors,
        "provenance": found.provenance,
    }


def _config(config: ModelConfig) -> dict[str, Any]:
    """As a dict, with layers of one kind that follow each other as one entry."""
    runs = [(kind, len(list(run))) for kind, run in itertools.groupby(config.layers)]
    return dataclasses.asdict(dataclasses.replace(config, layers=())) | {
        "num_layers": config.num_layers,
        "layers": [{"count": count} | dataclasses.asdict(kind) for kind, count in runs],
    }


def _kind(found: Description) -> str:
    if isinstance(found.weights, Checkpoint):
        return "Hugging Face" if found.revision is None else "Hugging Face hub"
    return "training run" if found.weights.parent.name == CHECKPOINTS else "import"


def _tensors(found: Description) -> list[dict[str, Any]]:
    axes = parameters.axes(found.config)
    sizes = parameters.sizes(found.config)
    bindings = bind(found.family, found.config, found.naming)
    dtypes = tensor_dtypes([b.source for b in bindings], found.raw_config, found.dtypes)
    rows: dict[str, dict[str, Any]] = {}
    for binding in bindings:
        name = binding.source
        if binding.layer is not None:
            name = binding.row.source.replace("{p}", found.naming.prefix)
        shape = binding.row.source_shape(sizes)
        dtype = dtypes[binding.source]
        row = rows.setdefault(
            name,
            {
                "name": name,
                "parameters": list(binding.row.targets),
                "axes": axes[binding.row.targets[0]],
                "shape": list(shape),
                "dtypes": [],
                "layers": None if binding.layer is None else 0,
                "bytes": 0,
            },
        )
        if dtype not in row["dtypes"]:
            row["dtypes"].append(dtype)
        if binding.layer is not None:
            row["layers"] += 1
        row["bytes"] += math.prod(shape) * DTYPES[dtype].itemsize
    return list(rows.values())
