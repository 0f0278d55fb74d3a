"""config.json: both spellings, transformers' defaults, and nothing ignored in silence."""

from __future__ import annotations

import json
from typing import Any

import pytest
import transformers

from chopjax.errors import UserError
from chopjax.models.config import Rope
from chopjax.models.families import FAMILIES, translate


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_missing_keys_take_the_defaults_of_transformers(name: str) -> None:
    full = json.loads(transformers.AutoConfig.for_model(name).to_json_string(use_diff=False))
    _, ours = translate({"model_type": name})
    _, theirs = translate(full)
    # transformers states the special tokens of its defaults; a bare config.json has none.
    assert ours.keep((0,)).__dict__ | {"bos_token_id": 0, "eos_token_id": 0} == (
        theirs.keep((0,)).__dict__ | {"bos_token_id": 0, "eos_token_id": 0}
    )


def rope_of(**raw: Any) -> Rope | None:
    return (
        translate({"model_type": "llama", "max_position_embeddings": 4096} | raw)[1].layers[0].rope
    )


def test_both_spellings_of_rope() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 1024
    old = rope_of(rope_theta=5e5, rope_scaling={"rope_type": "llama3"} | scaling)
    older = rope_of(rope_theta=5e5, rope_scaling={"type": "llama3"} | scaling)
    new = rope_of(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5} | scaling)
    assert old == older == new == Rope("llama3", 5e5, 8.0, 1024, 1.0, 4.0)
    assert rope_of(rope_theta=5e5, rope_scaling=None) == Rope(theta=5e5)


YARN = {"type": "yarn", "factor": 2.0}


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"model_type": "llama", "rope_scaling": {"type": "linear"}}, "factor"),
        ({"model_type": "llama", "rope_parameters": {"partial_rotary_factor": 0.5}}, "partial"),
        ({"model_type": "llama", "rope_parameters": {"wobble": 0.5}}, "wobble"),
        ({"model_type": "llama", "hidden_act": "mish"}, "mish"),
        ({"model_type": "llama", "quantization_config": {"bits": 4}}, "quantization_config"),
        ({"model_type": "llama", "sliding_window": 128}, "sliding_window"),
        ({"model_type": "llama", "layer_types": ["sliding_attention"]}, "layer_types"),
        ({"model_type": "llama", "num_hidden_layers": "many"}, "num_hidden_layers"),
        ({"model_type": "llama", "num_attention_heads": 7}, "num_attention_heads"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx"),
        ({"model_type": "gpt2", "scale_attn_weights": False}, "scale_attn_weights"),
        ({"model_type": "gpt2", "add_cross_attention": True}, "add_cross_attention"),
        ({"model_type": "opt", "enable_bias": "yes"}, "enable_bias"),
        ({"model_type": "mamba"}, "mamba"),
        ({"model_type": ["llama"]}, "llama"),
        ({"model_type": "llama", "rope_interleaved": True}, "rope_interleaved"),
        ({"model_type": "llama", "rope_theta": 0}, "rope_theta"),
        ({"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 0}}, "factor"),
        ({"model_type": "llama", "rms_norm_eps": -1}, "rms_norm_eps"),
        ({"model_type": "llama", "head_dim": 7}, "head_dim"),
        ({"model_type": "llama", "eos_token_id": "x"}, "eos_token_id"),
        ({"model_type": "llama", "layer_types": ["full_attention"]}, "layer_types"),
        ({"model_type": "llama", "rope_scaling": YARN | {"mscale": "x"}}, "mscale"),
        ({"model_type": "llama", "rope_scaling": YARN | {"attention_factor": "a"}}, "attention"),
        ({}, "None"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_by_name(raw: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        translate(raw)


def test_every_unsupported_option_is_listed() -> None:
    with pytest.raises(UserError) as caught:
        translate({"model_type": "llama", "sliding_window": 1, "hidden_act": "mish"})
    assert "sliding_window" in str(caught.value)
    assert "mish" in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        {"model_type": "llama", "is_llama_config": True, "rope_interleaved": False},
        {"model_type": "llama", "transformers.js_config": {"kv_cache_dtype": {}}},
        {"model_type": "gpt2", "_num_labels": 1, "n_special": 0, "predict_special_tokens": True},
        {"model_type": "gpt2", "output_past": True, "gradient_checkpointing": False},
    ],
    ids=str,
)
def test_inert_keys_of_public_checkpoints_are_fine(raw: dict[str, Any]) -> None:
    assert translate(raw) == translate({"model_type": raw["model_type"]})


def test_layer_types_that_say_nothing_new_are_fine() -> None:
    plain = translate({"model_type": "llama", "num_hidden_layers": 2})
    stated = {"layer_types": ["full_attention"] * 2}
    assert translate({"model_type": "llama", "num_hidden_layers": 2} | stated) == plain
