"""The tensors of a narrower checkpoint: the parent's, without what belongs to units that went.

Kept weights move byte for byte. The families' tables say which axis of which tensor is which, so
that fused tensors need no word of their own. No jax.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from chopjax.checkpoint import values
from chopjax.checkpoint.source import Checkpoint
from chopjax.checkpoint.writer import Tensor
from chopjax.models import parameters
from chopjax.models.config import ModelConfig
from chopjax.models.families.table import Binding

Stayed = Mapping[str, np.ndarray]  # kind → units of one layer, ascending; of `embed` of all alike
Places = dict[str, np.ndarray]  # axis letter of parameters.py → what of it stays


def places(config: ModelConfig, stayed: Stayed) -> Places:
    """Where the units stand. config: the parent's."""
    found: Places = {}
    if "mlp" in stayed:
        found["F"] = stayed["mlp"]
    if "embed" in stayed:
        found["D"] = stayed["embed"]
    if "heads" not in stayed:
        return found
    if config.num_kv_heads == 1:
        return found | {"N": stayed["heads"]}
    queries = np.arange(config.num_heads).reshape(config.num_kv_heads, -1)
    return found | {"N": queries[stayed["heads"]].reshape(-1), "K": stayed["heads"]}


def narrowed_tensors(
    checkpoint: Checkpoint, config: ModelConfig, stayed: Sequence[Stayed]
) -> list[Tensor]:
    """All tensors under their names, to be read when their turn comes.

    config: of the narrower decoder. stayed: one a layer.
    """
    by_layer = [places(checkpoint.config, each) for each in stayed]
    bindings = {binding.source: binding for binding in checkpoint.match.bindings}
    axes, tensors = parameters.axes(checkpoint.config), []
    for name, about in checkpoint.tensors.items():
        tensor, binding = Tensor(name, about.dtype, about.shape, about), bindings.get(name)
        if binding is not None:
            row, here = binding.row, by_layer[binding.layer or 0]
            letters = [axes[path].split()[row.stacked :] for path in row.targets]
            if any(letter in here for each in letters for letter in each):
                shape = row.source_shape(parameters.sizes(config))
                data = functools.partial(_narrowed, checkpoint, config, binding, letters, here)
                tensor = Tensor(name, about.dtype, shape, data)
        tensors.append(tensor)
    return tensors


def _narrowed(
    checkpoint: Checkpoint,
    config: ModelConfig,
    binding: Binding,
    letters: list[list[str]],
    here: Places,
) -> np.ndarray:
    """One tensor without what went."""
    sizes = parameters.sizes(checkpoint.config)
    arrays = binding.row.to_parameters(checkpoint.array(binding.source), sizes)
    kept = []
    for array, names in zip(arrays, letters, strict=True):
        for axis, letter in enumerate(names):
            if letter in here:
                array = np.take(array, here[letter], axis)
        kept.append(array)
    return values.contiguous(binding.row.to_tensor(kept, parameters.sizes(config)))
