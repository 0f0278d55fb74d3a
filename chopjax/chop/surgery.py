"""Removing layers: from config.json, from parameters, and from optimizer state.

jax is imported by the functions that slice arrays alone, so that chopping one Hugging Face
checkpoint into another runs without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from chopjax.checkpoint import structures
from chopjax.checkpoint.describe import Description
from chopjax.checkpoint.provenance import compose
from chopjax.checkpoint.structure import follow, stated_layers
from chopjax.errors import UserError, listing
from chopjax.keep import Keep, ranges, runs
from chopjax.models.families.table import Family

D = TypeVar("D", bound=Description)


def chop_config(raw_config: Mapping[str, Any], family: Family, keep: Keep) -> dict[str, Any]:
    """config.json of the model that keeps these layers; keys stay in their order.

    The number of layers changes, and what the family says of single layers follows those that stay
    (structures.py). Nothing else changes.
    """
    row = structures.of_family(family)
    num_layers = stated_layers(row, raw_config)
    if num_layers is None:
        num_layers = family.translate(raw_config).num_layers
    return follow(row, raw_config, num_layers, keep)


def chop_description(loaded: D, keep: Keep) -> D:
    """What `load(…, keep)` gives, with config.json and chopjax.json following the kept layers."""
    raw_config, num_layers = (
        loaded.raw_config,
        loaded.family.translate(loaded.raw_config).num_layers,
    )
    return dataclasses.replace(
        loaded,
        raw_config=chop_config(raw_config, loaded.family, keep),
        provenance=compose(
            loaded.provenance,
            loaded.source,
            loaded.revision,
            num_layers,
            "keep",
            {"keep": ranges(keep)},
            keep,
        ),
    )


def chop_params(params: Mapping[str, Any], keep: Keep) -> dict[str, Any]:
    """Parameters with these layers alone: every array under `blocks` is sliced on its first axis.

    numpy arrays stay numpy, arrays on a mesh keep their sharding, shapes stay shapes.
    """
    chopped: dict[str, Any] = chop_tree(dict(params), keep)
    return chopped


def chop_tree(tree: Any, keep: Keep) -> Any:
    """Any pytree in which the parameters' tree stands, once or often: a training state.

    Exactly the leaves below a key or field named `blocks` are sliced: parameters, momenta of Lion
    and Adam, accumulated gradients. Counters and all else stay as they are.
    Raises UserError where such a leaf has no layer axis in front (factored second moments, as
    Adafactor keeps them, cannot be chopped).
    """
    import jax

    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    blocks = {jax.tree_util.keystr(path): leaf for path, leaf in leaves if _in_blocks(path)}
    _check_layer_axis(blocks, keep)
    sliced = [_keep_layers(leaf, keep) if _in_blocks(path) else leaf for path, leaf in leaves]
    return jax.tree_util.tree_unflatten(structure, sliced)


def _in_blocks(path: tuple[Any, ...]) -> bool:
    return any("blocks" in (getattr(k, "key", None), getattr(k, "name", None)) for k in path)


def _check_layer_axis(blocks: Mapping[str, Any], keep: Keep) -> None:
    lengths = [leaf.shape[0] for leaf in blocks.values() if leaf.ndim]
    num_layers = max(lengths, key=lengths.count, default=0)
    odd = [
        f"{name} {list(leaf.shape)}"
        for name, leaf in blocks.items()
        if leaf.shape[:1] != (num_layers,)
    ]
    if odd:
        raise UserError(
            f"these arrays do not have the {num_layers} layers as their first axis, so no layer "
            f"can be removed from them:\n{listing(odd)}\n"
            "Drop this optimizer state and begin it anew after chopping, or use lion or adamw."
        )
    if blocks and not (keep and min(keep) >= 0 and max(keep) < num_layers):
        raise UserError(f"layers {list(keep)} are to be kept of {num_layers}")


def _keep_layers(leaf: Any, keep: Keep) -> Any:
    import jax
    import numpy as np

    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.update(shape=(len(keep), *leaf.shape[1:]))
    if isinstance(leaf, jax.Array):
        return jax.jit(_slices, static_argnums=1, out_shardings=leaf.sharding)(leaf, keep)
    return leaf[np.asarray(keep)]


def _slices(array: Any, keep: Keep) -> Any:
    """Runs of layers side by side: slices of an unsharded axis move nothing between devices."""
    import jax

    return jax.lax.concatenate([array[low : high + 1] for low, high in runs(keep)], 0)
