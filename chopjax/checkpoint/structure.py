"""What removing layers asks of a model: where its layers stand in the files and in config.json.

No computation, no shapes: a chop moves tensors whose names carry a layer's index, and mends the
fields of config.json that say something of each layer (layer_fields.py). No jax.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from chopjax.checkpoint.layer_fields import (
    Field,
    Keyed,
    Listed,
    Spelled,
    shown,
    whole,
)
from chopjax.checkpoint.quantized import follow_names
from chopjax.errors import UserError, listing
from chopjax.keep import Keep, ranges

# Lists with an entry a layer that newer transformers writes for any family.
COMMON = ("layer_types", "mlp_layer_types", "layers_block_type")
MAX_LAYERS = 10_000


@dataclasses.dataclass(frozen=True)
class Packed:
    """A tensor outside the layers in which each of them has a part of one axis, one after another.

    name: the end of the tensor's.
    """

    name: str
    axis: int


@dataclasses.dataclass(frozen=True)
class Structure:
    """A model_type, as far as a chop needs to know it.

    stems: what may stand before a layer's index in a tensor's name, the usual one first.
    inside: the keys under which config.json has the language model's part; none: at the top.
    count_keys: under which the number of layers may stand; the first is written where none does.
    counted_by: where no key counts the layers: the lists whose length does.
    behind: key and default of the number of layers that stand behind the others in the same stack
        and are none of them (multi-token prediction): they stay, with an index that follows.
    packed: tensors that hold a part for each layer.
    why: what keeps chopjax from computing with it; near: the family that comes nearest.
    notes: said to whoever chops it.
    """

    model_type: str
    stems: tuple[str, ...]
    fields: tuple[Field, ...] = ()
    inside: tuple[str, ...] = ()
    count_keys: tuple[str, ...] = ("num_hidden_layers",)
    counted_by: tuple[str, ...] = ()
    behind: tuple[str, int] | None = None
    packed: tuple[Packed, ...] = ()
    why: str = "no file of chopjax says yet how to compute with it"
    near: str = "llama"
    notes: tuple[str, ...] = ()

    @property
    def all_fields(self) -> tuple[Field, ...]:
        """Its own, and the lists that any config.json may have."""
        named = {key for field in self.fields for key in field.keys}
        lists = (Listed(key) for key in COMMON if key not in named)
        return (*self.fields, *lists, Keyed("per_layer_config"))

    def layer_index(self, name: str) -> tuple[int, str] | None:
        """A tensor's index and its name with `{l}` in the index's place; None outside the layers.

        Works on names of modules, too, those of a whole layer among them.
        """
        for stem in self.stems:
            if name.startswith(stem):
                found = re.fullmatch(r"(0|[1-9][0-9]{0,8})(\..+)?", name[len(stem) :], re.DOTALL)
                if found:
                    return int(found[1]), f"{stem}{{l}}{found[2] or ''}"
        return None

    def packed_axis(self, name: str) -> int | None:
        """The axis of a tensor in which the layers' parts follow each other, if it has one."""
        found = (part for part in self.packed if name.endswith(part.name))
        return next((part.axis for part in found), None)


def text_config(structure: Structure, raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of config.json."""
    part: Any = raw
    for key in structure.inside:
        part = part.get(key)
        if not isinstance(part, dict):
            raise UserError(
                f"config.json (model_type {structure.model_type}): {'.'.join(structure.inside)} is "
                f"{shown(part)}; the language model's own configuration is needed there"
            )
    found: Mapping[str, Any] = part
    return found


def stated_layers(structure: Structure, raw: Mapping[str, Any]) -> int | None:
    """How many layers config.json says there are, None where it says nothing.

    Raises UserError where it says two numbers, or something else than a number.
    """
    config = text_config(structure, raw)
    stated: dict[str, int] = {}
    for key in structure.count_keys:
        if config.get(key) is not None:
            stated[key] = whole(config, key, 0, 1)
            if stated[key] > MAX_LAYERS:
                raise UserError(f"config.json: {key} is {stated[key]}; at most {MAX_LAYERS:,}")
    for key in structure.counted_by:
        if isinstance(config.get(key), list | str):
            stated[key] = len(config[key])
    if len(set(stated.values())) > 1:
        numbers = ", ".join(f"{key} {number}" for key, number in stated.items())
        raise UserError(f"config.json says two numbers of layers: {numbers}")
    return next(iter(stated.values()), None)


def layers_behind(structure: Structure, raw: Mapping[str, Any]) -> int:
    """How many layers of another kind stand behind the others, in the same stack."""
    if structure.behind is None:
        return 0
    key, default = structure.behind
    return whole(text_config(structure, raw), key, default)


def count_layers(
    structure: Structure, raw: Mapping[str, Any], tensors: Iterable[str], where: str
) -> int:
    """The number of layers, which config.json and the tensors must agree upon.

    Raises UserError that lists layers without tensors and tensors without a layer.
    """
    found: dict[int, str] = {}
    for name in tensors:
        if place := structure.layer_index(name):
            found.setdefault(place[0], name)
    if not found:
        raise UserError(
            f"{where}: no tensor is named as a layer of model_type {structure.model_type} is: "
            f"{' or '.join(stem + 'N.…' for stem in structure.stems)}. Files are missing, or the "
            "wrong config.json lies beside these weights"
        )
    stated = stated_layers(structure, raw)
    num_layers = max(found) + 1 - layers_behind(structure, raw) if stated is None else stated
    key = structure.count_keys[0] if structure.count_keys else structure.counted_by[0]
    missing = [layer for layer in range(num_layers) if layer not in found]
    last = num_layers + layers_behind(structure, raw)
    beyond = [f"{found[layer]}" for layer in sorted(found) if layer >= last]
    problems = [f"no tensor of layers {ranges(missing)}"] if missing else []
    problems += [f"beyond the last layer: {name}" for name in beyond]
    if problems or num_layers < 1:
        raise UserError(
            f"{where}: config.json says {key} {num_layers}, and the files hold layers "
            f"{ranges(sorted(found))}:\n{listing(problems)}\n"
            "Either the wrong config.json lies beside these weights, or files are missing."
        )
    return num_layers


def kept_name(structure: Structure, name: str, keep: Keep, num_layers: int) -> str | None:
    """A tensor's name after the chop; None where its layer goes."""
    position = structure.layer_index(name)
    if position is None:
        return name
    layer, template = position
    place = new_index(layer, keep, num_layers)
    return None if place is None else template.replace("{l}", str(place))


def new_index(layer: int, keep: Keep, num_layers: int) -> int | None:
    """A layer's index after the chop; those behind the last one stay behind it."""
    if layer >= num_layers:
        return layer - num_layers + len(keep)
    return keep.index(layer) if layer in keep else None


def follow(
    structure: Structure,
    raw: Mapping[str, Any],
    num_layers: int,
    keep: Keep,
    modules: Iterable[str] = (),
) -> dict[str, Any]:
    """config.json of the model that keeps these layers; keys stay in their order.

    modules: names of the model's modules or tensors, which patterns of a quantization_config are
    held against. Raises UserError where the kept layers cannot be said in it.
    """
    config = text_config(structure, raw)
    changed = dict(config)
    for field in structure.all_fields:
        changed |= field.follow(config, num_layers, keep)
    counts = [key for key in structure.count_keys if config.get(key) is not None]
    if not any(config.get(key) is not None for key in structure.counted_by):
        counts = counts or list(structure.count_keys[:1])
    changed |= dict.fromkeys(counts, len(keep))  # also where the file left it to the default
    return _renamed(structure, _inserted(raw, structure.inside, changed), num_layers, keep, modules)


def _inserted(
    raw: Mapping[str, Any], inside: tuple[str, ...], part: dict[str, Any]
) -> dict[str, Any]:
    """raw with its language model's part replaced."""
    if not inside:
        return part
    return {**raw, inside[0]: _inserted(raw[inside[0]], inside[1:], part)}


def _renamed(
    structure: Structure,
    config: dict[str, Any],
    num_layers: int,
    keep: Keep,
    modules: Iterable[str],
) -> dict[str, Any]:
    """The same with the names in quantization_config following, at the top and in its parts."""

    changed = dict(config)
    for key in ("quantization_config", "compression_config"):
        if isinstance(config.get(key), dict):
            changed[key] = followed_names(structure, config[key], num_layers, keep, modules)
    for key in structure.inside[:1]:
        inner = dataclasses.replace(structure, inside=structure.inside[1:])
        changed[key] = _renamed(inner, config[key], num_layers, keep, modules)
    return changed


def followed_names(
    structure: Structure,
    config: Mapping[str, Any],
    num_layers: int,
    keep: Keep,
    modules: Iterable[str],
) -> dict[str, Any]:
    """What is said of quantized weights, its names of layers and modules following."""

    def place(layer: int) -> int | None:
        return new_index(layer, keep, num_layers)

    return follow_names(config, structure.layer_index, place, tuple(modules))


def kinds(structure: Structure, raw: Mapping[str, Any], num_layers: int) -> list[tuple[Any, ...]]:
    """Of each layer what config.json says of it; layers of equal entries are of one kind."""
    config = text_config(structure, raw)
    columns = [
        column
        for field in structure.all_fields
        if (column := field.kinds(config, num_layers)) is not None
    ]
    return [tuple(column[layer] for column in columns) for layer in range(num_layers)]


def period(structure: Structure, raw: Mapping[str, Any], num_layers: int) -> int | None:
    """After how many layers their kinds repeat, None where they do not.

    Two periods at least must be there, and the last may be cut off.
    """
    of = kinds(structure, raw, num_layers)
    if len(set(of)) < 2:
        return None
    for length in range(2, num_layers // 2 + 1):
        if all(of[layer] == of[layer - length] for layer in range(length, num_layers)):
            return length
    return None


def off_rhythm(structure: Structure, raw: Mapping[str, Any], num_layers: int) -> list[str]:
    """The lists of a config.json that say something else than the family's pattern over indices,
    which is all that some runtimes know."""
    config = text_config(structure, raw)
    return [
        field.key
        for field in structure.all_fields
        if isinstance(field, Spelled) and field.differs(config, num_layers)
    ]
