"""Checkpoints of random weights, which both sides of a comparison read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from chopjax.models import decoder, parameters
from chopjax.models.families import table, translate


def write_checkpoint(folder: Path, raw: dict[str, Any], dtype: str, factor: float = 1.0) -> None:
    """config.json and the weights of a shape, `factor` times as large as a decoder begins with."""
    family, config = translate(raw)
    params = jax.jit(lambda key: decoder.init(config, key, dtype))(jax.random.key(0))
    params = jax.tree.map(lambda w: factor * w, params)
    flat, sizes = flatten_dict(params, sep="/"), parameters.sizes(config)
    whole = {path: np.asarray(array) for path, array in flat.items()}
    tensors = {}
    for binding in table.bind(family, config, table.usual_naming(family)):
        arrays = [whole[path] for path in binding.row.targets]
        arrays = [a if binding.layer is None else a[binding.layer] for a in arrays]
        tensors[binding.source] = np.ascontiguousarray(binding.row.to_tensor(arrays, sizes))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(raw))
