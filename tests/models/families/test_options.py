"""config.json: both spellings, transformers' defaults, and nothing ignored in silence."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import transformers

from chopjax.errors import UserError
from chopjax.models.config import ModelConfig, Rope
from chopjax.models.families import FAMILIES, translate
from chopjax.models.positions import frequencies


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_missing_keys_take_the_defaults_of_transformers(name: str) -> None:
    # Without it transformers itself fails.
    needed = {"num_key_value_heads": 8} if name == "nemotron" else {}
    config = transformers.AutoConfig.for_model(name, **needed)
    full = json.loads(config.to_json_string(use_diff=False))
    _, ours = translate({"model_type": name} | needed)
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
        ({"model_type": "llama", "rope_scaling": {"type": "su", "factor": 2.0}}, "su"),
        ({"model_type": "llama", "rope_scaling": {"type": "linear"}}, "factor"),
        ({"model_type": "llama", "rope_parameters": {"partial_rotary_factor": 0.5}}, "partial"),
        ({"model_type": "llama", "rope_parameters": {"wobble": 0.5}}, "wobble"),
        ({"model_type": "llama", "hidden_act": "mish"}, "mish"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [0, 3]}, "mlp_only_layers"),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 2}, "decoder_sparse_step"),
        ({"model_type": "mixtral", "num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"model_type": "mixtral", "num_experts": 8, "num_local_experts": 4}, "num_local_experts"),
        ({"model_type": "olmoe", "num_experts": 10**6}, "1,000,000 experts"),
        ({"model_type": "olmoe", "head_dim": 64}, "head_dim"),
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


NUMBERS = [0, -1, 0.5, 1, 32, 1e-300, 1e300, 10**400, float("nan"), float("inf"), True, "4", [], {}]


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
@pytest.mark.parametrize(
    "key",
    "rope_theta factor beta_fast beta_slow attention_factor mscale low_freq_factor "
    "high_freq_factor original_max_position_embeddings".split(),
)
def test_rope_is_that_of_transformers_or_refused(kind: str, key: str) -> None:
    """Odd parameters: frequencies and factor as transformers computes them, or a UserError."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    given = {"rope_type": kind, "factor": 4.0, "original_max_position_embeddings": 64}
    given |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    given |= {"mscale_all_dim": 0.7} if key == "mscale" else {}
    raw: dict[str, Any] = {
        "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4,
    }  # fmt: skip
    raw |= {"num_key_value_heads": 4, "max_position_embeddings": 256}
    agreed = 0
    for value in NUMBERS:
        scaling = given | {key: value}
        try:
            rope = translate(raw | {"rope_parameters": dict(scaling)})[1].layers[0].rope
        except UserError:
            continue
        assert rope is not None
        theirs = transformers.LlamaConfig(**raw, rope_parameters=dict(scaling))
        want, factor = ROPE_INIT_FUNCTIONS[kind](theirs, device="cpu")
        np.testing.assert_allclose(frequencies(rope, 16), want.numpy(), rtol=1e-5)
        assert (rope.attention_factor if kind == "yarn" else 1.0) == pytest.approx(factor)
        agreed += 1
    assert agreed


def test_zero_means_not_given_in_yarn() -> None:
    zero = rope_of(rope_scaling=YARN | {"beta_fast": 0, "beta_slow": 0})
    assert zero == rope_of(rope_scaling=YARN)


ODD: list[Any] = [None, True, -1, 0, 0.5, 2**31, 2**64, 10**400, -(10**400), 1e308, float("nan"),
       float("-inf"), "", "x" * 100_000, "\x1b[31m", [], [[]], {}, {"a": {"b": []}}]  # fmt: skip


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_any_value_of_any_option(name: str) -> None:
    """Understood or refused; nothing else, and nothing that grows with the number of layers."""
    full = json.loads(transformers.AutoConfig.for_model(name).to_json_string(use_diff=False))
    for key in full:
        for value in ODD:
            refusal = ""
            try:
                translate(full | {key: value})
            except UserError as error:
                refusal = str(error)
            assert len(refusal.encode()) < 1_900, key


@pytest.mark.parametrize("count", [10**6, 10**7, 10**18, 10**400])
def test_more_layers_than_any_model_has(count: int) -> None:
    raw = {"model_type": "llama", "num_hidden_layers": count, "layer_types": ["full_attention"]}
    with pytest.raises(UserError, match="num_hidden_layers"):
        translate(raw)


def test_quantized_checkpoints_are_named_with_the_way_out() -> None:
    raw = {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}
    with pytest.raises(UserError, match=r"gptq.*chopjax chop. removes layers from quantized ones"):
        translate(raw)


PATTERNS = {"rope_type": "yarn", "factor": 2.0}


@pytest.mark.parametrize(
    ("name", "raw", "named"),
    [
        ("gemma3_text", {"rope_scaling": {"type": "linear", "factor": 8.0}}, "ignores type"),
        ("gemma3_text", {"rope_parameters": {"rope_type": "default"}}, "full_attention"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("olmo3", {"rope_scaling": PATTERNS | {"truncate": False}}, "truncate"),
        ("olmo3", {"rope_parameters": {"full_attention": {"wobble": 1}}}, "wobble"),
        ("olmo3", {"sliding_window": None}, "sliding_window"),
        ("exaone4", {"sliding_window": None}, "sliding_window"),
        ("exaone4", {"sliding_window_pattern": "LLLG"}, "sliding_window_pattern"),
        ("mistral", {"layer_types": ["full_attention"] * 32}, "layer_types"),
        ("cohere2", {"sliding_window": None}, "sliding_window"),
        ("cohere2", {"use_qk_norm": True}, "use_qk_norm"),
        ("smollm3", {"layer_types": ["sliding_attention"] * 36}, "use_sliding_window"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ("gemma2", {"sliding_window": None}, "sliding_window"),
        ("mpt", {"attn_config": {"alibi_bias_max": 16}}, "alibi_bias_max"),
        ("mpt", {"attn_config": {"prefix_lm": True}}, "prefix_lm"),
        ("mpt", {"attn_config": {"wobble": 1}}, "wobble"),
        ("mpt", {"attn_config": "alibi"}, "attn_config"),
        ("falcon", {"alibi": True}, "alibi"),
        ("falcon", {"new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn"),
        ("falcon", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual"),
        ("stablelm", {"qk_layernorm": True}, "qk_layernorm"),
        ("stablelm", {"head_dim": 40}, "head_dim"),
        ("nemotron", {}, "num_key_value_heads"),
        ("helium", {"head_dim": 64}, "head_dim"),
        ("internlm3", {"bias": True}, "qkv_bias"),
        ("gpt_neo", {"attention_types": [[["global", "local"], 3]]}, "attention_types"),
        ("gpt_neo", {"attention_types": "local"}, "attention_types"),
        ("gpt_neox", {"rope_theta": 5e5}, "rotary_emb_base"),
        ("gptj", {"rotary_dim": 63}, "rotary_dim"),
        ("phi3", {"rope_scaling": {"type": "llama3", "factor": 2.0}}, "llama3"),
        ("phi3", {"rope_scaling": {"type": "su", "short_factor": [1.0]}}, "short_factor"),
        ("phi", {"partial_rotary_factor": 0.03}, "head_dim"),
        ("granite", {"logits_scaling": 0}, "logits_scaling"),
        ("bloom", {"n_head": 4, "num_attention_heads": 8}, "num_attention_heads"),
        ("bloom", {"n_layer": 4, "num_hidden_layers": 8}, "num_hidden_layers"),
        ("glm", {"partial_rotary_factor": None}, "partial_rotary_factor is null"),
        ("phi", {"partial_rotary_factor": None}, "partial_rotary_factor is null"),
        ("qwen2", {"max_window_layers": "x"}, "max_window_layers"),
        ("qwen3", {"max_window_layers": None}, "max_window_layers"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: rope_type 'linear'"),
        ("hunyuan_v1_dense", {"rope_scaling": {"type": "linear", "alpha": 2.0}}, "alpha"),
        ("hunyuan_v1_dense", {"use_cla": True}, "use_cla"),
        ("hunyuan_v1_dense", {"rope_scaling": {"type": "dynamic", "alpha": "x"}}, "alpha is 'x'"),
        (
            "hunyuan_v1_dense",
            {"head_dim": 2, "rope_scaling": {"type": "dynamic", "alpha": 9.0}},
            "head_dim 2",
        ),
        ("bloom", {"n_layer": 20_000}, "n_layer"),
        ("cohere", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_what_a_family_does_not_compute_is_refused_by_name(
    name: str, raw: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        translate({"model_type": name} | raw)


def test_null_is_not_missing() -> None:
    def layers(name: str, **raw: Any) -> ModelConfig:
        return translate({"model_type": name} | raw)[1]

    assert layers("mistral").layers[0].window == 4096
    assert layers("mistral", sliding_window=None).layers[0].window is None
    assert (layers("gemma2").score_cap, layers("gemma2").logit_cap) == (50.0, 30.0)
    free = layers("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None)
    assert (free.score_cap, free.logit_cap) == (None, None)
    assert layers("gemma3_text").logit_cap is None
    assert {layer.window for layer in layers("ministral", sliding_window=None).layers} == {None}


def test_patterns_over_indices() -> None:
    def windows(name: str, **raw: Any) -> str:
        config = translate({"model_type": name} | raw)[1]
        return "".join("-W"[layer.window is not None] for layer in config.layers)

    assert windows("gemma2", num_hidden_layers=5) == "W-W-W"
    assert windows("gemma3_text", num_hidden_layers=7) == "WWWWW-W"
    assert windows("gemma3_text", num_hidden_layers=5, sliding_window_pattern=2) == "W-W-W"
    assert windows("cohere2", num_hidden_layers=5) == "WWW-W"
    assert windows("olmo3", num_hidden_layers=5) == "WWW-W"
    assert windows("exaone4", num_hidden_layers=5) == "WWW-W"
    assert windows("qwen2", num_hidden_layers=4, max_window_layers=1) == "----"
    qwen = {"num_hidden_layers": 4, "max_window_layers": 1, "use_sliding_window": True}
    assert windows("qwen2", **qwen) == windows("qwen3", **qwen) == "-WWW"
    assert windows("gpt_neo", num_layers=4) == "-W-W"
    turned = [layer.rope for layer in translate({"model_type": "smollm3"})[1].layers]
    assert [rope is not None for rope in turned[:5]] == [True, True, True, False, True]
    far = translate({"model_type": "olmo3", "rope_theta": 1e4})[1].layers
    assert [layer.rope.theta for layer in far[2:4] if layer.rope] == [5e5, 1e4]


def test_longrope_s_context_is_the_original_one() -> None:
    factors = {"short_factor": [1.0] * 48, "long_factor": [4.0] * 48}
    raw = {"max_position_embeddings": 131_072, "rope_scaling": {"type": "longrope"} | factors}
    config = translate({"model_type": "phi3"} | raw)[1]
    assert config.max_positions == 4096
    rope = config.layers[0].rope
    assert rope is not None
    assert rope.kind == "longrope"
    assert rope.attention_factor == pytest.approx((1 + math.log(32) / math.log(4096)) ** 0.5)


def test_attention_layers_has_the_last_word() -> None:
    kinds = ["local", "local", "global", "local"]
    for more in ({}, {"attention_types": [[["global"], 4]]}):
        raw = {"model_type": "gpt_neo", "num_layers": 4, "attention_layers": kinds} | more
        windows = [layer.window for layer in translate(raw)[1].layers]
        assert windows == [256, 256, None, 256]


@pytest.mark.parametrize(
    "raw",
    [
        {"model_type": "cohere", "model_max_length": 131_072},
        {"model_type": "cohere2", "use_parallel_embedding": True},
        {"model_type": "qwen3", "rope_scaling": {"attn_factor": 0.8782488562869419} | YARN},
        {"model_type": "llama", "activation": "swiglu", "partial_rotary_factor": 1.0},
        {"model_type": "gpt_neox", "custom_pipelines": {"text-generation": {}}},
        {"model_type": "mistral", "attention_bias": False, "mlp_bias": False},
        {"model_type": "hunyuan_v1_dense", "use_cla": False, "attention_head_dim": 128},
    ],
    ids=str,
)
def test_what_published_files_say_beside_it(raw: dict[str, Any]) -> None:
    translate(raw)


def test_gemma_s_gelu_is_tanh_s() -> None:
    assert translate({"model_type": "gemma", "hidden_act": "gelu"})[1].activation == "gelu_tanh"
    second = {"model_type": "gemma2", "hidden_act": "gelu", "hidden_activation": "gelu"}
    assert translate(second)[1].activation == "gelu"
