"""Weight tables: which tensor of a Hugging Face checkpoint is which parameter.

A family is a tuple of rows. A row names a tensor, the parameter (or parameters) it fills, and how
the axes move between the two, in the notation of einops: `"(N H) D -> D N H"`. The same row serves
both directions, and nothing but reshaping and transposing can be said in it, so that
export(import(x)) is x, byte for byte. No jax in this module.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from chopjax.errors import UserError, listing
from chopjax.models import parameters
from chopjax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of tensor.

    source: its name, with `{p}` for the family's prefix, `{l}` for the layer index, `{e}` for the
        expert's and `{h}` for the head's name.
    target: the parameter path. Several paths mean that the tensor holds several parameters, side by
        side on one axis.
    axes: the tensor's axes, an arrow, the parameter's axes (without L where there is a tensor a
        layer, and X where there is one an expert). Letters are those of parameters.py, numbers are
        literal sizes, brackets group axes into one. Of a tensor that holds several parameters,
        braces say how many each has of the axis that they share: `"({N,K,K} H) D -> D {N,K,K} H"`.
    when: whether a decoder has this tensor, where its parameters alone do not say it.
    """

    source: str
    target: str | tuple[str, ...]
    axes: str
    when: Callable[[ModelConfig], bool] | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def per_layer(self) -> bool:
        return "{l}" in self.source

    @property
    def stacked(self) -> int:
        """How many of the parameter's leading axes (L, X) the file has a tensor for each of."""
        return self.per_layer + ("{e}" in self.source)

    def is_linear(self, inputs: Sequence[str]) -> bool:
        """Whether the tensor is [outputs, inputs], as torch's Linear has it. inputs: the axes of
        the kernel that are these."""
        left, _ = _sides(self.axes)
        return len(left) == 2 and left[1] == tuple(inputs)

    def source_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The tensor's shape in the checkpoint."""
        left, _ = _sides(self.axes)
        return _shape(left, sizes)

    def to_parameters(self, tensor: np.ndarray, sizes: Mapping[str, int]) -> tuple[np.ndarray, ...]:
        """The tensor as its parameters: views where numpy can, one a target."""
        left, right = _sides(self.axes)
        into = _flat(right)
        array = tensor.reshape([_size(axis, sizes) for axis in _flat(left)])
        array = array.transpose([_flat(left).index(axis) for axis in into])
        shared = [axis for axis in into if axis.startswith("{")]
        if not shared:
            return (array.reshape(_shape(right, sizes)),)
        ends = np.cumsum([_size(part, sizes) for part in _parts(shared[0])])[:-1]
        parts = np.split(array, ends, axis=into.index(shared[0]))
        return tuple(part.reshape(_shape(right, sizes, index)) for index, part in enumerate(parts))

    def to_tensor(self, arrays: Sequence[np.ndarray], sizes: Mapping[str, int]) -> np.ndarray:
        """The inverse of to_parameters."""
        left, right = _sides(self.axes)
        into = _flat(right)
        parts = [
            array.reshape([_size(axis, sizes, index) for axis in into])
            for index, array in enumerate(arrays)
        ]
        whole = parts[0]
        if len(parts) > 1:
            axis = next(index for index, axis in enumerate(into) if axis.startswith("{"))
            whole = np.concatenate(parts, axis=axis)
        array = whole.transpose([into.index(axis) for axis in _flat(left)])
        return array.reshape(_shape(left, sizes))


Groups = tuple[tuple[str, ...], ...]  # axes that make one axis together


@functools.cache
def _sides(pattern: str) -> tuple[Groups, Groups]:
    """`"(N H) D -> D N H"` → ((("N", "H"), ("D",)), (("D",), ("N",), ("H",)))."""

    def groups(side: str) -> Groups:
        parts = re.findall(r"\(([^)]*)\)|(\S+)", side)
        return tuple(tuple(inner.split()) if inner else (single,) for inner, single in parts)

    left, right = pattern.split("->")
    return groups(left), groups(right)


def _flat(groups: Groups) -> list[str]:
    return [axis for group in groups for axis in group]


def _parts(axis: str) -> list[str]:
    """`"{N,K,K}"` → what each target has of it."""
    return axis[1:-1].split(",")


def _size(axis: str, sizes: Mapping[str, int], target: int | None = None) -> int:
    """Of the whole tensor; with `target`, of that one's part."""
    if axis.startswith("{"):
        parts = [_size(part, sizes) for part in _parts(axis)]
        return sum(parts) if target is None else parts[target]
    return int(axis) if axis.isdigit() else sizes[axis]


def _shape(groups: Groups, sizes: Mapping[str, int], target: int | None = None) -> tuple[int, ...]:
    return tuple(math.prod(_size(axis, sizes, target) for axis in group) for group in groups)


@dataclasses.dataclass(frozen=True)
class Family:
    """A model_type of transformers: how to read its config.json and its tensors."""

    model_type: str
    translate: Callable[[Mapping[str, Any]], ModelConfig]
    rows: tuple[Row, ...]
    prefixes: tuple[str, ...]  # what may stand before the base model's names; the usual one first
    num_layers_key: str  # in config.json
    # Constants that older transformers versions saved beside the weights (masks, frequencies).
    # They carry no information: imports leave them out, chopping copies them along.
    buffers: tuple[str, ...] = ()
    heads: tuple[str, ...] = ("lm_head",)  # names of the head; the usual one first
    # What a narrower model changes: the feed-forward's width in config.json, None where no key says
    # it; and whether transformers refuses heads whose number does not divide the model's width.
    mlp_key: str | None = "intermediate_size"
    heads_divide_width: bool = False

    @property
    def embedding_row(self) -> Row:
        return next(row for row in self.rows if row.target == "embed/embedding")


HEAD = "{h}.weight"


@dataclasses.dataclass(frozen=True)
class Naming:
    """What a checkpoint is free to choose: kept so that export writes the names it found."""

    prefix: str
    embedding_names: tuple[str, ...]  # a tied table may stand under its own name, the head's, both
    head: str = "lm_head"  # or, GPT-NeoX, embed_out

    def of(self, row: Row) -> str:
        """The row's name, the layer's and the expert's index still open."""
        return row.source.replace("{p}", self.prefix).replace("{h}", self.head)


@dataclasses.dataclass(frozen=True)
class Binding:
    """One tensor and where it goes. `layer` is the index in the file, None outside the blocks;
    `expert` likewise, None where a tensor holds all that there is of a layer."""

    source: str
    row: Row
    layer: int | None
    expert: int | None = None

    @property
    def place(self) -> tuple[int, ...]:
        """Where in the parameter the tensor stands."""
        return tuple(index for index in (self.layer, self.expert) if index is not None)


@dataclasses.dataclass(frozen=True)
class Match:
    """A checkpoint's tensors, all accounted for."""

    naming: Naming
    bindings: tuple[Binding, ...]
    duplicates: tuple[tuple[str, str], ...]  # (name, name) that must hold the same bytes
    buffers: tuple[str, ...]


def usual_naming(family: Family) -> Naming:
    """The names that transformers itself would write."""
    prefix = family.prefixes[0]
    table = family.embedding_row.source.replace("{p}", prefix)
    return Naming(prefix, (table,), family.heads[0])


def bind(family: Family, config: ModelConfig, naming: Naming) -> tuple[Binding, ...]:
    """Every tensor that a checkpoint of this configuration has, in file order of the table.

    Rows whose parameter the configuration does not have (biases, an untied head) are left out. A
    tied table that stands under two names is bound twice.
    """
    present = parameters.axes(config)
    bindings = []
    for row in family.rows:
        if row.targets[0] not in present or (row.when and not row.when(config)):
            continue
        if row.target == "embed/embedding":
            bindings += [Binding(name, row, None) for name in naming.embedding_names]
            continue
        name = naming.of(row)
        for layer in range(config.num_layers) if row.per_layer else (None,):
            own = name.replace("{l}", str(layer))
            for expert in _experts(row, config):
                bindings.append(Binding(own.replace("{e}", str(expert)), row, layer, expert))
    return tuple(bindings)


def _experts(row: Row, config: ModelConfig) -> Sequence[int | None]:
    """Those that have a tensor each; None: the tensor is of no expert."""
    if "{e}" not in row.source:
        return (None,)
    assert config.experts is not None
    return range(config.experts.count)


def match(
    family: Family, config: ModelConfig, tensors: Mapping[str, tuple[int, ...]], where: str
) -> Match:
    """Account for every tensor of a checkpoint.

    tensors: name → shape as the files have it. where: the checkpoint, for the message.
    Raises UserError that lists all missing, unknown and mis-shaped tensors at once.
    """
    _check_layers(family, config, tensors, where)
    naming = _find_naming(family, config, tensors)
    bindings = bind(family, config, naming)
    size = parameters.sizes(config)
    bound = {binding.source for binding in bindings}
    buffers = [name for name in tensors if name not in bound and is_buffer(family, name)]
    problems = [
        f"missing: {b.source} {list(b.row.source_shape(size))}"
        for b in bindings
        if b.source not in tensors
    ]
    problems += [
        f"unknown: {name} {list(shape)}"
        for name, shape in tensors.items()
        if name not in bound and name not in buffers
    ]
    problems += [
        f"wrong shape: {b.source} is {list(tensors[b.source])}, "
        f"config.json asks for {list(b.row.source_shape(size))}"
        for b in bindings
        if b.source in tensors and tuple(tensors[b.source]) != b.row.source_shape(size)
    ]
    if problems:
        raise UserError(
            f"{where}: the tensors do not fit config.json (model_type {family.model_type}, "
            f"{config.num_layers} layers):\n{listing(problems)}\n"
            "Either the wrong config.json lies beside these weights, or files are missing."
        )
    names = naming.embedding_names
    duplicates = tuple((names[0], other) for other in names[1:])
    return Match(naming, bindings, duplicates, tuple(buffers))


def _check_layers(
    family: Family, config: ModelConfig, tensors: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """One line where config.json has far more layers than the files: no list of what is missing."""
    layers = {place[0] for name in tensors if (place := layer_index(family, name))}
    if config.num_layers > 2 * len(layers) + 64:
        raise UserError(
            f"{where}: config.json says {family.num_layers_key} {config.num_layers:,}, and the "
            f"files hold tensors of {len(layers)} layers; the wrong config.json lies beside these "
            "weights"
        )


def _find_naming(family: Family, config: ModelConfig, tensors: Iterable[str]) -> Naming:
    names = set(tensors)

    def hits(naming: Naming) -> int:
        firsts = (naming.of(row).replace("{l}", "0").replace("{e}", "0") for row in family.rows)
        return len(names.intersection(firsts))

    # The first of each wins a draw: with nothing found, the usual names are reported missing.
    both = [Naming(prefix, (), head) for prefix in family.prefixes for head in family.heads]
    found = max(both, key=hits)
    own = found.of(family.embedding_row)
    tables: tuple[str, ...] = (own,)
    if config.tie_embeddings:
        heads = (f"{name}.weight" for name in family.heads)
        tables = tuple(name for name in (own, *heads) if name in names) or (own,)
    return dataclasses.replace(found, embedding_names=tables)


def is_buffer(family: Family, name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in family.buffers)


def layer_index(family: Family, name: str) -> tuple[int, str] | None:
    """A tensor's layer and its name with `{l}` in the index's place; None outside the blocks.

    Works on every tensor below the family's layer stack, buffers included.
    """
    stem = next(row.source for row in family.rows if row.per_layer).split("{l}")[0]
    for prefix in family.prefixes:
        start = stem.replace("{p}", prefix)
        indexed = re.fullmatch(re.escape(start) + r"(0|[1-9][0-9]{0,8})(\..+)", name)
        if indexed:
            return int(indexed[1]), f"{start}{{l}}{indexed[2]}"
    return None
