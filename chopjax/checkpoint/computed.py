"""Which models chopjax computes with, and what it says of the others. No jax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.checkpoint import structures
from chopjax.errors import UserError, cut
from chopjax.models import families
from chopjax.models.config import ModelConfig
from chopjax.models.families.table import Family


def translate(raw: Mapping[str, Any]) -> tuple[Family, ModelConfig]:
    """config.json → its family and what the decoder computes.

    Raises UserError that names every option that is not supported; of a model_type that chopjax can
    chop but not compute with, that says so.
    """
    if is_computed(raw):
        return families.translate(raw)
    if reason := chopped_alone(raw):
        raise UserError(reason)
    return families.translate(raw)


def is_computed(raw: Mapping[str, Any]) -> bool:
    """Whether a family has this model_type; its options are another question."""
    model_type = raw.get("model_type")
    return isinstance(model_type, str) and model_type in families.FAMILIES


def chopped_alone(raw: Mapping[str, Any]) -> str | None:
    """What to say of a model_type that can be chopped and nothing else; None of any other."""
    structure = structures.find(raw)
    if structure is None or is_computed(raw):
        return None
    near = structure.near if structure.near in families.FAMILIES else "llama"
    alone = ""
    if structure.inside and near == structure.near:
        alone = " To have its language model alone: chopjax chop MODEL OUT --text-only."
    return (
        f"config.json: model_type {cut(repr(raw['model_type']), 80)}: chopjax can remove its "
        f"layers (chopjax chop MODEL OUT …) but not compute with it, because {structure.why}. The "
        f"nearest family that it computes with is {near}.{alone} All of them:\n"
        f"{', '.join(families.FAMILIES)}"
    )
