"""One file a family. Adding a family is adding one file and naming it twice here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.errors import UserError, cut
from chopjax.models.config import ModelConfig
from chopjax.models.families import (
    arcee,
    bloom,
    cohere,
    cohere2,
    ernie4_5,
    exaone4,
    falcon,
    gemma,
    gemma2,
    gemma3_text,
    glm,
    glm4,
    gpt2,
    gpt_neo,
    gpt_neox,
    gptj,
    granite,
    helium,
    hunyuan_v1_dense,
    internlm3,
    llama,
    ministral,
    mistral,
    mixtral,
    mpt,
    nemotron,
    olmo,
    olmo2,
    olmo3,
    olmoe,
    opt,
    phi,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    seed_oss,
    smollm3,
    stablelm,
    starcoder2,
)
from chopjax.models.families.table import Family

MODULES = (
    arcee,
    bloom,
    cohere,
    cohere2,
    ernie4_5,
    exaone4,
    falcon,
    gemma,
    gemma2,
    gemma3_text,
    glm,
    glm4,
    gpt2,
    gpt_neo,
    gpt_neox,
    gptj,
    granite,
    helium,
    hunyuan_v1_dense,
    internlm3,
    llama,
    ministral,
    mistral,
    mixtral,
    mpt,
    nemotron,
    olmo,
    olmo2,
    olmo3,
    olmoe,
    opt,
    phi,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    seed_oss,
    smollm3,
    stablelm,
    starcoder2,
)
FAMILIES: dict[str, Family] = {module.FAMILY.model_type: module.FAMILY for module in MODULES}


def find(raw: Mapping[str, Any]) -> Family:
    """The family that a config.json belongs to."""
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        if "_diffusers_version" in raw or "_class_name" in raw:
            raise UserError("config.json: of a part of a diffusers pipeline, not a language model")
        raise UserError(
            f"config.json: model_type {cut(repr(model_type), 80)} is not supported; chopjax "
            f"computes with decoders of these kinds: {', '.join(FAMILIES)}.\n"
            "`chopjax chop` removes layers from many more: `chopjax inspect --families`"
        )
    return FAMILIES[model_type]


def translate(raw: Mapping[str, Any]) -> tuple[Family, ModelConfig]:
    """config.json → its family and what the decoder computes.

    Raises UserError that names every option that is not supported.
    """
    family = find(raw)
    return family, family.translate(raw)
