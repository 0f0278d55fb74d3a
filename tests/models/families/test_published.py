"""What published checkpoints vary: types, shards, prefixes, heads, buffers, old config files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import families
import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from chopjax.checkpoint.load import load
from chopjax.models.families import FAMILIES, translate
from chopjax.models.families.table import usual_naming

# What older versions of transformers saved beside the weights, for layer N.
BUFFERS = {
    "gpt2": "transformer.h.{}.attn.bias",
    "gpt_neo": "transformer.h.{}.attn.attention.bias",
    "gpt_neox": "gpt_neox.layers.{}.attention.bias",
    "gptj": "transformer.h.{}.attn.masked_bias",
    "llama": "model.layers.{}.self_attn.rotary_emb.inv_freq",
    "mistral": "model.layers.{}.self_attn.rotary_emb.inv_freq",
}


def same(one: Any, other: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


@pytest.mark.parametrize("name", families.NAMES)
def test_half_precision_many_shards_no_prefix_and_masks(name: str, tmp_path: Path) -> None:
    """One after the other on one checkpoint, which stays the same model."""
    options = families.draw(name, 0)
    checkpoints.write_checkpoint(tmp_path / "one", name, torch.float16, **options)
    checkpoints.write_checkpoint(
        tmp_path / "many", name, torch.float16, max_shard_size="5KB", **options
    )
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    want = load(str(tmp_path / "one"))
    assert want.params["embed"]["embedding"].dtype == np.float16
    assert same(load(str(tmp_path / "many")).params, want.params)

    tensors = safetensors.torch.load_file(tmp_path / "one" / "model.safetensors")
    naming = usual_naming(FAMILIES[name])
    bare = {name.removeprefix(naming.prefix): tensor for name, tensor in tensors.items()}
    if want.config.tie_embeddings:  # the table stands twice, as in Falcon's first files
        table = naming.embedding_names[0].removeprefix(naming.prefix)
        bare[f"{naming.head}.weight"] = bare[table].clone()
    if name in BUFFERS:
        mask = torch.ones((1, 1, 8, 8), dtype=torch.bool)
        old = BUFFERS[name].removeprefix(naming.prefix)
        bare |= {old.format(layer): mask.clone() for layer in range(want.config.num_layers)}
    safetensors.torch.save_file(bare, tmp_path / "one" / "model.safetensors", {"format": "pt"})
    assert same(load(str(tmp_path / "one")).params, want.params)


def old_spelling(raw: dict[str, Any]) -> dict[str, Any]:
    """config.json as transformers 4 wrote it: no lists that a pattern gives, RoPE at the top."""
    old = {key: value for key, value in raw.items() if key not in ("rope_parameters", "dtype")}
    old["torch_dtype"] = raw.get("dtype", "float32")
    rope = raw.get("rope_parameters")
    if rope and "full_attention" in rope:
        full = dict(rope["full_attention"])
        old["rope_theta"] = full.pop("rope_theta")
        if raw["model_type"] == "gemma3_text":
            old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        old["rope_scaling"] = full if full.get("rope_type", "default") != "default" else None
    elif rope:
        inner = dict(rope)
        theta, share = inner.pop("rope_theta", None), inner.pop("partial_rotary_factor", None)
        if raw["model_type"] == "gpt_neox":
            old |= {"rotary_emb_base": theta, "rotary_pct": share}
        else:
            old |= {"rope_theta": theta} | (
                {} if share is None else {"partial_rotary_factor": share}
            )
        plain = inner.get("rope_type", "default") == "default"
        old["rope_scaling"] = None if plain else inner | {"type": inner["rope_type"]}
    return old


@pytest.mark.parametrize("name", families.NAMES)
def test_old_and_new_config_files_say_the_same(name: str) -> None:
    for seed in range(6):
        config = transformers.AutoConfig.for_model(name, **families.draw(name, seed))
        raw: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
        raw |= {"bos_token_id": 0, "eos_token_id": 0}
        _, new = translate(raw)
        assert translate(old_spelling(raw))[1] == new
        as_published = translate(json.loads(config.to_json_string()) | {"model_type": name})[1]
        assert as_published.layers == new.layers
