"""What is known of a checkpoint that chopjax can chop and not compute with. No jax.

Its tensors with the layers collapsed, bytes by type, and the layers' kinds as config.json has them.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from typing import Any

from chopjax.checkpoint.compressed_tensors import held_as
from chopjax.checkpoint.provenance import read_provenance
from chopjax.checkpoint.source import Files
from chopjax.checkpoint.structure import kinds, period, text_config


def overview(files: Files) -> dict[str, Any]:
    """Values that JSON can hold. elements: as stored; packed weights count as what they are in."""
    sizes: Counter[str] = Counter()
    for tensor in files.tensors.values():
        sizes[tensor.dtype] += tensor.nbytes
    return {
        "model": files.name,
        "revision": files.revision,
        "kind": "Hugging Face" if files.revision is None else "Hugging Face hub",
        "model_type": files.raw_config.get("model_type"),
        "depth": "chop" if held_as(files.raw_config) is None else "compute",
        "why_not_computed": files.why,
        "notes": list(files.notes),
        "num_layers": files.num_layers,
        "layers": _layers(files),
        "period": period(files.structure, files.raw_config, files.num_layers),
        "quantization": _quantization(files),
        "elements": sum(math.prod(t.shape) for t in files.tensors.values()),
        "bytes": sum(sizes.values()),
        "bytes_by_dtype": dict(sizes.most_common()),
        "tensors": _tensors(files),
        "provenance": read_provenance(files.folder),
    }


def _layers(files: Files) -> list[dict[str, Any]]:
    """Layers of one kind that follow each other as one entry."""
    of = kinds(files.structure, files.raw_config, files.num_layers)
    return [
        {"count": len(list(run)), "kind": [str(value) for value in kind]}
        for kind, run in itertools.groupby(of)
    ]


def _quantization(files: Files) -> str | None:
    """The method by its name; nothing where the weights are as they were trained."""
    for part in (files.raw_config, text_config(files.structure, files.raw_config)):
        for key in ("quantization_config", "compression_config"):
            config = part.get(key)
            if isinstance(config, dict):
                return str(config.get("quant_method") or config.get("format") or key)
    return None


def _tensors(files: Files) -> list[dict[str, Any]]:
    """One entry a name, type and shape; of names' numbers, layers become {l} and the rest {n}."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    layers: dict[tuple[Any, ...], set[int]] = {}
    for name, tensor in files.tensors.items():
        place = files.structure.layer_index(name)
        plain = re.sub(r"(?<=\.)[0-9]+(?=\.)", "{n}", place[1] if place else name)
        key = (plain, tensor.dtype, tensor.shape)
        row = rows.setdefault(
            key,
            {
                "name": plain,
                "shape": list(tensor.shape),
                "dtype": tensor.dtype,
                "layers": None,
                "count": 0,
                "bytes": 0,
            },
        )
        row["count"] += 1
        row["bytes"] += tensor.nbytes
        if place:
            layers.setdefault(key, set()).add(place[0])
            row["layers"] = len(layers[key])
    return list(rows.values())
