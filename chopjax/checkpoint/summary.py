"""A model in numbers: its tensors with the layers collapsed, parameters and bytes. No jax."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

from chopjax.checkpoint.computed import translate
from chopjax.checkpoint.describe import CHECKPOINTS, AdapterRun, Description
from chopjax.checkpoint.dtypes import stated_dtype, tensor_dtypes
from chopjax.checkpoint.safetensors_file import DTYPES
from chopjax.checkpoint.source import Checkpoint
from chopjax.models import parameters
from chopjax.models.config import ModelConfig
from chopjax.models.families.table import Family, Naming, bind, usual_naming

WIDTHS = {"float32": 4, "bfloat16": 2}  # bytes, of the types that people load models in


def summary(description: Description) -> dict[str, Any]:
    """Values that JSON can hold.

    tensors: one entry a kind of tensor, with the number of layers that have it and, where a layer
    has one an expert, of experts. Bytes and types are those of the files; of a training run, those
    that export would write.
    """
    own = {
        "revision": description.revision,
        "kind": _kind(description),
        "weights": True,
        "provenance": description.provenance,
    }
    tensors = _tensors(
        description.family,
        description.config,
        description.naming,
        description.raw_config,
        description.dtypes,
    )
    return (
        {"model": description.name}
        | own
        | _numbers(description.family, description.config, description.raw_config, tensors)
    )


def summary_of_config(
    name: str, raw_config: Mapping[str, Any], provenance: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The same of a config.json without weights: tensors as export would name and write them."""
    family, config = translate(raw_config)
    own = {
        "revision": None,
        "kind": "config.json alone",
        "weights": False,
        "provenance": provenance,
    }
    tensors = _tensors(family, config, usual_naming(family), raw_config, None)
    return {"model": name} | own | _numbers(family, config, raw_config, tensors)


def _numbers(
    family: Family,
    config: ModelConfig,
    raw_config: Mapping[str, Any],
    tensors: list[dict[str, Any]],
) -> dict[str, Any]:
    shapes = parameters.shapes(config)
    tables = ("embed/embedding", "embed/positions", "head/kernel")
    per_layer, total = parameters.count_per_layer(config), parameters.count(config)
    return {
        "family": family.model_type,
        "config": _config(config),
        "dtype": stated_dtype(raw_config),
        "parameters": {
            "total": total,
            "active": parameters.count(config, active=True),
            "per_layer": per_layer,
            "blocks": per_layer * config.num_layers,
            "embeddings": sum(math.prod(shapes[path]) for path in tables if path in shapes),
        },
        "bytes": sum(row["bytes"] for row in tensors),
        "bytes_by_dtype": {name: total * width for name, width in WIDTHS.items()},
        "tensors": tensors,
    }


def _config(config: ModelConfig) -> dict[str, Any]:
    """As a dict, with layers of one kind that follow each other as one entry."""
    runs = [(kind, len(list(run))) for kind, run in itertools.groupby(config.layers)]
    return dataclasses.asdict(dataclasses.replace(config, layers=())) | {
        "num_layers": config.num_layers,
        "layers": [{"count": count} | dataclasses.asdict(kind) for kind, count in runs],
    }


def _kind(description: Description) -> str:
    if isinstance(description.weights, Checkpoint):
        return "Hugging Face" if description.revision is None else "Hugging Face hub"
    if isinstance(description.weights, AdapterRun):
        return f"training run of adapters on {description.weights.base.name}"
    return "training run" if description.weights.parent.name == CHECKPOINTS else "import"


def _tensors(
    family: Family,
    config: ModelConfig,
    naming: Naming,
    raw_config: Mapping[str, Any],
    types: Mapping[str, str] | None,
) -> list[dict[str, Any]]:
    axes = parameters.axes(config)
    sizes = parameters.sizes(config)
    bindings = bind(family, config, naming)
    dtypes = tensor_dtypes([b.source for b in bindings], raw_config, types)
    rows: dict[str, dict[str, Any]] = {}
    for binding in bindings:
        name = binding.source
        if binding.layer is not None:
            name = naming.of(binding.row)
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
                "experts": None if binding.expert is None else sizes["X"],
                "bytes": 0,
            },
        )
        if dtype not in row["dtypes"]:
            row["dtypes"].append(dtype)
        if binding.layer is not None and not binding.expert:
            row["layers"] += 1
        row["bytes"] += math.prod(shape) * DTYPES[dtype].itemsize
    return list(rows.values())
