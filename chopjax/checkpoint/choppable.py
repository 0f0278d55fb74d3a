"""Opening a checkpoint to chop it: any decoder whose layers can be told apart. No jax.

What chopjax computes with is opened as strictly as everywhere else. Of the rest the tensors' names
and config.json's fields are looked at, and no shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.checkpoint import structures
from chopjax.checkpoint.assets import SIDE_FILES
from chopjax.checkpoint.compressed_tensors import held_as
from chopjax.checkpoint.computed import is_computed
from chopjax.checkpoint.inferred import check_fields, infer
from chopjax.checkpoint.source import Files, Found, Opening, assemble
from chopjax.checkpoint.structure import Structure, count_layers, layers_behind, stated_layers
from chopjax.disk.files import inside
from chopjax.errors import UserError
from chopjax.models import families


def _check(raw: Mapping[str, Any]) -> None:
    """Say at once that this is no decoder, before weights are looked for."""
    model_type = raw.get("model_type")
    if isinstance(model_type, str) and model_type in structures.REFUSED:
        raise UserError(
            f"config.json: model_type {model_type!r} cannot be chopped by moving tensors, because "
            f"{structures.REFUSED[model_type]}"
        )
    if "_diffusers_version" in raw or "_class_name" in raw:
        families.find(raw)  # which says what it is
    structure = structures.find(raw)
    if structure is not None and _why_not(raw) is not None:
        stated_layers(structure, raw)


def _assemble(found: Found) -> Files:
    raw = found.raw_config
    problem = _why_not(raw) or _quantized_beside(found)
    if problem is None:
        return assemble(found)
    structure = structures.find(raw)
    if structure is None:
        structure = infer(raw, found.tensors, found.name)
    num_layers = count_layers(structure, raw, found.tensors, found.name)
    check_fields(structure, raw, num_layers)
    why = str(problem) if is_computed(raw) else structure.why
    model = f"model_type {structure.model_type}"
    limits = f"chopjax can chop {model}, and not train or score it: {why}"
    if held_as(raw) is not None:
        why = "the weights are quantized, as `chopjax quantize` does it"
        limits = f"{why}, and stay so; what trains or changes them gives floating point"
    return Files(
        **vars(found),
        structure=structure,
        num_layers=num_layers,
        why=why,
        notes=(*structure.notes, *_behind(structure, raw), limits),
    )


def _quantized_beside(found: Found) -> UserError | None:
    """What keeps chopjax from computing with weights that a file beside config.json describes."""
    names = [name for name in SIDE_FILES if inside(found.folder, name) is not None]
    return UserError(f"the weights are quantized ({names[0]})") if names else None


def _behind(structure: Structure, raw: Mapping[str, Any]) -> list[str]:
    """transformers knows layers of multi-token prediction by the index that they had."""
    if not layers_behind(structure, raw):
        return []
    note = (
        "the layers of multi-token prediction stay, behind the kept layers; transformers passes "
        "them over at their old index alone, and says now that their tensors are unexpected"
    )
    return [note]


def _why_not(raw: Mapping[str, Any]) -> UserError | None:
    """What keeps chopjax from computing with a model; None where nothing does."""
    try:
        families.translate(raw)
    except UserError as error:
        return error
    return None


TO_CHOP = Opening(_check, _assemble)
