"""Decoders without a row in the registry: what can be told from names and fields alone.

Layers are cut where there is one way to read the model: one stack of layers, a number in
config.json that agrees with it, and no field left that may say something of single layers and is
not understood. Whatever is not clear is an error that names it. No jax.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from chopjax.checkpoint.layer_fields import (
    Field,
    Indices,
    shown,
)
from chopjax.checkpoint.layer_rules import (
    SparseSteps,
)
from chopjax.checkpoint.safetensors_file import TensorInfo
from chopjax.checkpoint.structure import COMMON, Structure, text_config
from chopjax.errors import UserError, cut, listing
from chopjax.models.families.options import NEUTRAL

COUNT_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
# Fields that mean the same wherever they are met.
UNDERSTOOD: tuple[Field, ...] = (
    SparseSteps(),
    Indices("attn_layer_indices"),
    Indices("full_attn_idxs"),
)
# Where the language model's part may stand.
_PARTS = ("text_config", "language_config", "llm_config")
_OTHERS = re.compile(r"vision|visual|image|audio|speech|video|encoder|tower|mtp|draft|expert")
# Names of fields that may say something of single layers: depths, rhythms, ranges.
_SUSPECT = re.compile(
    r"layer|block|depth|first|dense|interval|period|pattern|freq|every|step|skip|shar|offset|hybrid|stride"
    r"|sliding_window|idx|index|indices|reuse|local|global|start|switch"
)
_INNOCENT = re.compile(
    # Norms, sizes and rates that have "layer" or one of the others in their names.
    r"layer_?norm|layernorm|layer_scale|rms_?norm|layerdrop|layer_norm|block_size|shared_expert"
    r"|n_shared|num_shared|shared_intermediate|sliding_window_size|max_window_layers"
    r"|num_local_experts|token_index|per_layer_input_size|tie_|steps_per|frequency_penalty|pretraining|_eps$|_epsilon$"
)
# Lists of a fixed length, which may be that of the layers by chance.
_FIXED = ("time_step_limit", "mlp_multipliers", "ssm_multipliers", "mtp_layers_block_type")
_WHOLE = ("eos_token_id", "bos_token_id", "pad_token_id", "suppress_tokens")
_ROPE = ("rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq")
# Rhythms whose every place is alike at 1.
_RHYTHM = re.compile(r"interval|period|freq|every|step|stride")


def infer(raw: Mapping[str, Any], tensors: Mapping[str, TensorInfo], where: str) -> Structure:
    """A structure for a model_type that has no row. Raises UserError that names what is unclear."""
    model_type = raw.get("model_type")
    name = model_type if isinstance(model_type, str) else "unknown"
    inside = next(((key,) for key in _PARTS if isinstance(raw.get(key), dict)), ())
    bare = Structure(name, (), inside=inside)
    config = text_config(bare, raw)
    key, count = _count(config, name)
    stem = _stem(tensors, count, key, where, name)
    note = (
        f"model_type {cut(repr(model_type), 80)} is not in chopjax's registry. Inferred: {count} "
        f"layers, tensors {stem}0.… to {stem}{count - 1}.…, counted by "
        f"{'.'.join((*inside, key))}, all computed alike but for what config.json's lists say"
    )
    structure = Structure(
        name,
        (stem,),
        fields=UNDERSTOOD,
        inside=inside,
        count_keys=tuple(k for k in COUNT_KEYS if k in config) or (key,),
        why="model_type is none that it knows",
        notes=(note,),
    )
    _check_alike(structure, config, tensors, count, where)
    _check_others(structure, tensors, count, where)
    return structure


def _count(config: Mapping[str, Any], name: str) -> tuple[str, int]:
    stated = {key: config[key] for key in COUNT_KEYS if config.get(key) is not None}
    counts = {key: n for key, n in stated.items() if type(n) is int and 1 <= n <= 10_000}
    if len(set(counts.values())) != 1 or len(counts) != len(stated):
        said = ", ".join(f"{key} {shown(value)}" for key, value in stated.items()) or "nothing"
        raise UserError(
            f"config.json: model_type {cut(repr(name), 80)} is not supported, and its number of "
            f"layers is not clear: {said}, where one of {', '.join(COUNT_KEYS)} is needed"
        )
    return next(iter(counts.items()))


def _stem(tensors: Iterable[str], count: int, key: str, where: str, name: str) -> str:
    """What stands before the layers' index: of all stacks of tensors the one of so many layers."""
    stacks: dict[str, set[int]] = defaultdict(set)
    for tensor in tensors:
        # The first index alone: what is numbered below a layer is its own affair.
        found = re.match(r"((?:[^.]+\.)*?)(0|[1-9][0-9]{0,8})\.", tensor)
        if found:
            stacks[found[1]].add(int(found[2]))
    full = set(range(count))
    fitting = [stem for stem, layers in stacks.items() if layers == full]
    own = [stem for stem in fitting if not _OTHERS.search(stem)]
    strange = [stem for stem in stacks if stem not in own and not _OTHERS.search(stem)]
    if len(own) == 1 and not strange:
        return own[0]
    shown_stacks = [
        f"{stem}N: {len(layers)} of 0 to {max(layers)}" for stem, layers in sorted(stacks.items())
    ]
    raise UserError(
        f"{where}: model_type {cut(repr(name), 80)} is not supported, and which tensors are its "
        f"{count} layers ({key}) is not clear; exactly one stack of them is needed:\n"
        f"{listing(shown_stacks or ['no tensor has an index in its name'])}"
    )


def check_fields(structure: Structure, raw: Mapping[str, Any], num_layers: int) -> None:
    """Raise UserError for fields that may say something of single layers and are not understood.

    Of a model_type with a row, whose other fields are known, only what has one entry a layer.
    """
    config = text_config(structure, raw)
    known = {key for field in structure.all_fields for key in field.keys}
    known |= {*structure.count_keys, *structure.counted_by, *structure.inside}
    known |= {structure.behind[0]} if structure.behind else set()
    inferred = structure.fields is UNDERSTOOD
    problems = []
    for key, value in config.items():
        if key in known or key in NEUTRAL or key in _FIXED or key in _ROPE:
            continue
        if key in ("quantization_config", "compression_config", "vision_config", "audio_config"):
            continue
        if isinstance(value, list) and len(value) == num_layers > 1:
            problems.append(f"{key}: a list of {num_layers} entries, as many as layers")
        elif inferred and (why := _suspicious(key, value, config)) is not None:
            problems.append(f"{key} = {shown(value)}{why}")
    if problems:
        raise UserError(
            f"config.json (model_type {structure.model_type}): these fields may say something of "
            f"single layers, and chopjax does not know what, so no layer is removed:\n"
            f"{listing(problems)}\n"
            "Chop a checkpoint of a model_type that `chopjax inspect --families` lists, or ask for "
            "a row in chopjax's registry."
        )


def _suspicious(key: str, value: Any, config: Mapping[str, Any]) -> str | None:
    """Why a field may say something of single layers, as words behind it; None where it does not.

    Numbers that are not whole say nothing of indices, save a depth to scale by.
    """
    if value is None or value is False or value in (0, "", [], {}):
        return None
    name = key.lower()
    if isinstance(value, dict):
        if any(re.fullmatch("[0-9]+", str(inner)) for inner in value):
            return ", with indices for keys"
        deeper = [(inner, _suspicious(inner, v, value)) for inner, v in value.items()]
        return next((f" ({inner}{why})" for inner, why in deeper if why is not None), None)
    whole = isinstance(value, list) and all(type(number) is int for number in value)
    if whole and name not in _WHOLE:
        return ", a list of whole numbers, which may be layers"
    if not _SUSPECT.search(name) or _INNOCENT.search(name):
        return None
    if name == "sliding_window":
        stated = isinstance(config.get("layer_types"), list)
        unused = config.get("use_sliding_window") is False
        return None if stated or unused else ", and no layer_types says which layers it is for"
    if isinstance(value, float):
        return "" if "depth" in name else None
    if isinstance(value, int) and value == 1 and value is not True and _RHYTHM.search(name):
        return None
    if name in ("sliding_window_pattern", "full_attention_interval", "no_rope_layer_interval"):
        return None if any(isinstance(config.get(each), list) for each in COMMON) else ""
    return ""


def _check_others(
    structure: Structure, tensors: Mapping[str, TensorInfo], num_layers: int, where: str
) -> None:
    """A tensor outside of the layers with an axis as long as they are many may hold a part for each
    of them."""
    packed = [
        f"{name} {list(tensor.shape)}"
        for name, tensor in tensors.items()
        if structure.layer_index(name) is None
        and num_layers in tensor.shape
        and not _OTHERS.search(name)
    ]
    if num_layers > 1 and packed:
        raise UserError(
            f"{where}: model_type {structure.model_type} is not supported, and these tensors, none "
            f"of a layer, have an axis of {num_layers}, the number of layers, and may hold a part "
            f"for each of them:\n{listing(packed)}"
        )


def _check_alike(
    structure: Structure,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    num_layers: int,
    where: str,
) -> None:
    """Layers that differ in their tensors must differ in what config.json says of them."""
    parts: dict[int, set[tuple[Any, ...]]] = {layer: set() for layer in range(num_layers)}
    for name, tensor in tensors.items():
        if place := structure.layer_index(name):
            parts[place[0]].add((place[1], tensor.dtype, tensor.shape))
    columns = [
        column
        for field in structure.all_fields
        if (column := field.kinds(config, num_layers)) is not None
    ]
    seen: dict[tuple[Any, ...], int] = {}
    for layer in range(num_layers):
        kind = tuple(column[layer] for column in columns)
        first = seen.setdefault(kind, layer)
        if parts[layer] != parts[first]:
            differ = sorted(f"{n} {d} {list(s)}" for n, d, s in parts[layer] ^ parts[first])
            raise UserError(
                f"{where}: model_type {structure.model_type} is not supported, and its layers "
                f"{first} and {layer} have different tensors, which no field of config.json that "
                f"chopjax understands explains:\n{listing(differ, 6)}"
            )
