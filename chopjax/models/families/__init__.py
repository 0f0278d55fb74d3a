"""One file a family. Adding a family is adding one file and its line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.errors import UserError, cut
from chopjax.models.config import ModelConfig
from chopjax.models.families import gpt2, llama, opt, qwen3
from chopjax.models.families.table import Family

FAMILIES: dict[str, Family] = {f.FAMILY.model_type: f.FAMILY for f in (llama, gpt2, opt, qwen3)}


def find(raw: Mapping[str, Any]) -> Family:
    """The family that a config.json belongs to."""
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        if "_diffusers_version" in raw or "_class_name" in raw:
            raise UserError("config.json: of a part of a diffusers pipeline, not a language model")
        raise UserError(
            f"config.json: model_type {cut(repr(model_type), 80)} is not supported; chopjax "
            f"removes layers from decoders of these kinds: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def translate(raw: Mapping[str, Any]) -> tuple[Family, ModelConfig]:
    """config.json → its family and what the decoder computes.

    Raises UserError that names every option that is not supported.
    """
    family = find(raw)
    return family, family.translate(raw)
