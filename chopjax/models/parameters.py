"""The one parameter layout: which arrays a decoder has, and what their axes are.

Parameters are a plain nested dict; a path such as `blocks/attention/query` names a leaf. Under
`blocks` every array carries the layer axis L first, nothing else does. No jax in this module:
inspecting and chopping a checkpoint need only the names and sizes.

Axes: V vocabulary, D model, E embedding table where narrower than D, P positions, L layers,
N query heads, K key/value heads, H head size, F feed-forward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from chopjax.models.config import ModelConfig

Params = dict[str, Any]  # nested: str → Params or array


def sizes(config: ModelConfig) -> dict[str, int]:
    """Axis letter → size."""
    return {
        "V": config.vocab_size,
        "D": config.embed_dim,
        "E": config.table_dim,
        "P": config.max_positions + config.position_offset,
        "L": config.num_layers,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_dim,
        "F": config.mlp_dim,
    }


def axes(config: ModelConfig) -> dict[str, str]:
    """Path → axes, for every parameter that a decoder of this configuration has, and no other."""
    table = "E" if config.embed_projection else "D"
    result = {"embed/embedding": f"V {table}"}
    if config.rope is None:
        result["embed/positions"] = "P D"
    if config.embed_projection:
        result["embed/project_in"] = "E D"
    result |= _norm("blocks/attention_norm", "L D", config)
    result |= {
        "blocks/attention/query": "L D N H",
        "blocks/attention/key": "L D K H",
        "blocks/attention/value": "L D K H",
        "blocks/attention/output": "L N H D",
    }
    if config.attention_bias:
        result |= {
            "blocks/attention/query_bias": "L N H",
            "blocks/attention/key_bias": "L K H",
            "blocks/attention/value_bias": "L K H",
            "blocks/attention/output_bias": "L D",
        }
    result |= _norm("blocks/mlp_norm", "L D", config)
    inward = ["gate", "up"] if config.gated_mlp else ["up"]
    for name in inward:
        result[f"blocks/mlp/{name}"] = "L D F"
        if config.mlp_bias:
            result[f"blocks/mlp/{name}_bias"] = "L F"
    result["blocks/mlp/down"] = "L F D"
    if config.mlp_bias:
        result["blocks/mlp/down_bias"] = "L D"
    if config.final_norm:
        result |= _norm("final_norm", "D", config)
    if config.embed_projection:
        result["head/project_out"] = "D E"
    if not config.tie_embeddings:
        result["head/kernel"] = f"{table} V"
    return result


def _norm(path: str, dims: str, config: ModelConfig) -> dict[str, str]:
    if not config.norm_affine:
        return {}
    parts = ["scale"] if config.norm == "rms" else ["scale", "bias"]
    return {f"{path}/{part}": dims for part in parts}


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path → shape."""
    size = sizes(config)
    return {path: tuple(size[a] for a in dims.split()) for path, dims in axes(config).items()}


def count(config: ModelConfig) -> int:
    """Parameters in all; a tied head is counted once."""
    return sum(math.prod(shape) for shape in shapes(config).values())


def count_per_layer(config: ModelConfig) -> int:
    """Parameters of one block."""
    blocks = [s for path, s in shapes(config).items() if path.startswith("blocks/")]
    return sum(math.prod(shape[1:]) for shape in blocks)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict → {"a/b/c": leaf}, in the tree's order."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        flat |= flatten(value, path + "/") if isinstance(value, Mapping) else {path: value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
    """{"a/b/c": leaf} → nested dict."""
    tree: Params = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree
