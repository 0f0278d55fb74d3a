"""The language model of a checkpoint that holds other parts beside it (a vision tower), alone.

Names and config.json become those of the text model; bytes only move. No jax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from chopjax.checkpoint import structures
from chopjax.checkpoint.computed import translate
from chopjax.checkpoint.source import Found, Opening, assemble
from chopjax.checkpoint.structure import Structure, text_config
from chopjax.errors import UserError

# What the whole model's config.json may say for its text part.
SHARED = "bos_token_id dtype eos_token_id pad_token_id tie_word_embeddings torch_dtype".split()
HEAD = "lm_head.weight"
# Keys of published text parts that are about the other parts, or say nothing.
INERT = """_flash_attn_2_enabled is_composition num_image_tokens perceiver_config
pixel_shuffle_factor qk_layer_norms use_resampler""".split()


def text_found(found: Found) -> Found:
    """The same files, as the text model alone sees them."""
    structure = _wrapper(found.raw_config)
    prefix = _prefix(structure, found.tensors)
    old_names: dict[str, str] = {}
    for name in found.tensors:
        if name.startswith(prefix):
            old_names["model." + name.removeprefix(prefix)] = name
        elif name == HEAD or name.endswith("." + HEAD):
            old_names[HEAD] = name
    raw = text_raw(found.raw_config)
    if HEAD not in old_names and "tie_word_embeddings" not in found.raw_config:
        raw["tie_word_embeddings"] = True  # the whole models' default; a text model's may differ
    fetcher = found.fetcher

    def fetch(names: Iterable[str]) -> None:
        if fetcher is not None:
            fetcher([old_names[name] for name in names])

    return dataclasses.replace(
        found,
        raw_config=raw,
        tensors={new: found.tensors[old] for new, old in old_names.items()},
        fetcher=fetch,
    )


def text_raw(raw: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the text model. Raises UserError where the model has no other part."""
    structure = _wrapper(raw)
    part = {k: v for k, v in text_config(structure, raw).items() if k not in INERT}
    shared = {key: raw[key] for key in SHARED if key in raw and key not in part}
    if "tie_word_embeddings" in raw:  # of the two it is the whole model's that counts
        shared["tie_word_embeddings"] = raw["tie_word_embeddings"]
    return {"model_type": structure.near} | part | shared


def _wrapper(raw: Mapping[str, Any]) -> Structure:
    structure = structures.find(raw)
    if structure is None or not structure.inside:
        raise UserError(
            f"config.json: model_type {raw.get('model_type')!r} is no model whose language model "
            f"stands under a key of its own, such as text_config; leave --text-only out"
        )
    return structure


def _prefix(structure: Structure, tensors: Iterable[str]) -> str:
    """What stands before the names of the text model."""
    names = list(tensors)
    stems = [stem for stem in structure.stems if any(name.startswith(stem) for name in names)]
    if not stems:
        raise UserError(
            f"no tensor is named as a layer of model_type {structure.model_type} is: "
            f"{' or '.join(stem + 'N.…' for stem in structure.stems)}"
        )
    return stems[0].removesuffix("layers.")


TEXT_ALONE = Opening(
    lambda raw: translate(text_raw(raw)), lambda found: assemble(text_found(found))
)
