"""New values of single parameters on their way into a checkpoint's tensors. No jax.

A repair computes parameters, a checkpoint has tensors: of other axes, and some hold several
parameters. All other tensors are copied as they are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chopjax.checkpoint.safetensors_file import DTYPES
from chopjax.checkpoint.source import Checkpoint, Files
from chopjax.checkpoint.writer import Tensor
from chopjax.chop.fold_place import BIAS_KEY
from chopjax.keep import Keep
from chopjax.models import parameters
from chopjax.models.families.table import Binding, Row, bind


@dataclasses.dataclass(frozen=True)
class Folds:
    """values: (path of parameters.py, layer as numbered before the chop or None outside the blocks)
    → what the parameter becomes, without the layer axis. mlp_bias: the model gets biases in its
    feed-forward, which are zero where `values` has none. about: of the repair, for chopjax.json."""

    values: Mapping[tuple[str, int | None], np.ndarray]
    mlp_bias: bool = False
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def config(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """config.json."""
        return {**raw, BIAS_KEY: True} if self.mlp_bias else dict(raw)

    def record(self, tensors: Mapping[str, str], checkpoint: Files, keep: Keep) -> dict[str, Any]:
        """For chopjax.json: the repair, the tensors that it changed, and those that it added, all
        under their new names. tensors: new name → old name."""
        by_name = _bindings(checkpoint)
        folded = [
            new for new, old in tensors.items() if old in by_name and self._touches(by_name[old])
        ]
        added = [tensor.name for tensor in self.added(checkpoint, keep)]
        return {**self.about, "folded": folded} | ({"added": added} if added else {})

    def replaced(self, part: Tensor, old: str, checkpoint: Files) -> Tensor:
        """A tensor that is to be written, with its new data where a parameter in it changes.

        part: as it would be written without the repair."""
        binding = _bindings(checkpoint).get(old)
        if binding is None or not self._touches(binding):
            return part
        return part._replace(data=functools.partial(self._data, checkpoint, part, binding))

    def added(self, checkpoint: Files, keep: Keep) -> list[Tensor]:
        """The biases that the checkpoint did not have, in the types of their down projections."""
        if not self.mlp_bias:
            return []
        assert isinstance(checkpoint, Checkpoint)
        before, naming = checkpoint.config.keep(keep), checkpoint.match.naming
        after = dataclasses.replace(before, mlp_bias=True)
        known = {binding.source for binding in bind(checkpoint.family, before, naming)}
        types = {
            binding.layer: checkpoint.tensors[name].dtype
            for name, binding in _bindings(checkpoint).items()
            if "blocks/mlp/down" in binding.row.targets
        }
        tensors, sizes = [], parameters.sizes(after)
        for binding in bind(checkpoint.family, after, naming):
            if binding.source in known:
                continue
            assert binding.layer is not None
            layer = keep[binding.layer]
            shape, dtype = binding.row.source_shape(sizes), types[layer]
            (path,) = binding.row.targets
            value = self.values.get((path, layer))
            make = functools.partial(_added, binding.row, value, shape, dtype, sizes)
            tensors.append(Tensor(binding.source, dtype, shape, make))
        return tensors

    def _touches(self, binding: Binding) -> bool:
        return any((path, binding.layer) in self.values for path in binding.row.targets)

    def _data(self, checkpoint: Files, part: Tensor, binding: Binding) -> np.ndarray:
        """The tensor's array. Parameters beside the new ones keep what `part` would have."""
        assert isinstance(checkpoint, Checkpoint)
        sizes = parameters.sizes(checkpoint.config)
        wanted: Sequence[np.ndarray | None] = [
            self.values.get((path, binding.layer)) for path in binding.row.targets
        ]
        old: Sequence[np.ndarray] = ()
        if any(value is None for value in wanted):
            array = part.data() if callable(part.data) else checkpoint.array(binding.source)
            assert isinstance(array, np.ndarray)
            old = binding.row.to_parameters(array, sizes)
        arrays = [old[i] if value is None else value for i, value in enumerate(wanted)]
        return _written(binding.row, arrays, sizes, part.dtype)


def _bindings(checkpoint: Files) -> dict[str, Binding]:
    assert isinstance(checkpoint, Checkpoint)
    return {binding.source: binding for binding in checkpoint.match.bindings}


def _written(
    row: Row, arrays: Sequence[np.ndarray], sizes: Mapping[str, int], dtype: str
) -> np.ndarray:
    return np.ascontiguousarray(row.to_tensor(arrays, sizes)).astype(DTYPES[dtype], copy=False)


def _added(
    row: Row,
    value: np.ndarray | None,
    shape: tuple[int, ...],
    dtype: str,
    sizes: Mapping[str, int],
) -> np.ndarray:
    if value is None:
        return np.zeros(shape, DTYPES[dtype])
    return _written(row, [value], sizes, dtype)
