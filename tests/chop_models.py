"""A tiny random model of transformers for every row of the chop registry.

SIZES: model_type → what its config says beyond BASE. Each has layers of every kind that it knows,
windows shorter than the tests' texts, and weights of which none is what it would be by default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

LAYERS = 7
KEEP = (0, 2, 3, 6)  # breaks every period that a model of seven layers has
BASE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 128,
}
HEAD = {"head_dim": 8}
WINDOW = {"sliding_window": 5}
SLIDES = {"use_sliding_window": True, "max_window_layers": 3} | WINDOW
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
ROUTED |= {"num_experts_per_tok": 2, "moe_intermediate_size": 8}
MLA = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
MLA |= {"v_head_dim": 8, "num_key_value_heads": 4}
DELTA = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
DELTA |= {"linear_num_value_heads": 4, "linear_conv_kernel_dim": 3} | HEAD
MAMBA = {"mamba_n_heads": 4, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
STATE = {"state_size": 8, "num_hidden_layers": LAYERS, "vocab_size": 61, "hidden_size": 32}

SIZES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": WINDOW,
    "ministral": WINDOW | HEAD,
    "ministral3": HEAD,
    "phi": {},
    "phi3": WINDOW,
    "gemma": HEAD,
    "olmo": {},
    "olmo2": {},
    "cohere": {},
    "granite": {},
    "nemotron": {},
    "helium": HEAD,
    "ernie4_5": HEAD,
    "seed_oss": HEAD,
    "arcee": {},
    "internlm3": HEAD,
    "hunyuan_v1_dense": HEAD,
    "glm": HEAD,
    "glm4": HEAD,
    "stablelm": {},
    "starcoder2": WINDOW,
    "persimmon": {},
    "apertus": {},
    "hyperclovax": {},
    "iquestcoder": {},
    "vaultgemma": HEAD | WINDOW,
    "bitnet": {},
    "jais2": {},
    "nanochat": {},
    "gpt2": {"n_positions": 128, "n_embd": 32, "n_layer": LAYERS, "n_head": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt_neox": {},
    "gptj": {"n_positions": 128, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "rotary_dim": 4},
    "codegen": {"n_positions": 128, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "rotary_dim": 4},
    "gpt_bigcode": {"n_positions": 128, "n_embd": 32, "n_layer": LAYERS, "n_head": 4},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "bloom": {"n_layer": LAYERS, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": LAYERS, "n_heads": 4, "max_seq_len": 128},
    "gpt_neo": {
        "num_layers": LAYERS,
        "num_heads": 4,
        "window_size": 5,
        "attention_types": [[["global", "local", "local"], 2], [["global"], 1]],
    },
    "xglm": {"d_model": 32, "num_layers": LAYERS, "attention_heads": 4, "ffn_dim": 48},
    "qwen2": SLIDES,
    "qwen3": SLIDES | HEAD,
    "gemma2": WINDOW | HEAD,
    "gemma3_text": WINDOW | HEAD,
    "cohere2": WINDOW,
    "olmo3": WINDOW,
    "exaone4": WINDOW,
    "cwm": WINDOW | HEAD,
    "smollm3": WINDOW | {"use_sliding_window": True},
    "mixtral": LOCAL | WINDOW,
    "olmoe": MOE,
    "phimoe": LOCAL,
    "granitemoe": LOCAL,
    "granitemoeshared": LOCAL | {"shared_intermediate_size": 8},
    "flex_olmo": MOE,
    "minimax_m2": LOCAL | HEAD,
    "gpt_oss": LOCAL | HEAD | WINDOW,
    "qwen2_moe": MOE
    | SLIDES
    | {"shared_expert_intermediate_size": 8, "decoder_sparse_step": 2, "mlp_only_layers": [5]},
    "qwen3_moe": MOE | HEAD | {"decoder_sparse_step": 2, "mlp_only_layers": [3]},
    "deepseek_v2": ROUTED | MLA | {"first_k_dense_replace": 3},
    "deepseek_v3": ROUTED | MLA | {"first_k_dense_replace": 3},
    "glm4_moe": ROUTED | HEAD | {"first_k_dense_replace": 3},
    "glm4_moe_lite": ROUTED | MLA,
    "dots1": ROUTED | SLIDES | HEAD | {"first_k_dense_replace": 3},
    "ernie4_5_moe": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 8,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 4,
    },
    "hunyuan_v1_moe": HEAD | {"num_experts": 4, "moe_topk": [1, 2, 1, 2, 1, 1, 2]},
    "llama4_text": LOCAL
    | HEAD
    | {"interleave_moe_layer_step": 2, "intermediate_size_mlp": 16, "attention_chunk_size": 8},
    "mimo_v2_flash": ROUTED | HEAD | WINDOW | {"v_head_dim": 8},
    "gemma3n_text": HEAD
    | WINDOW
    | {
        "intermediate_size": [24, 16, 24, 16, 24, 16, 24],
        "hidden_size_per_layer_input": 4,
        "vocab_size_per_layer_input": 61,
        "num_kv_shared_layers": 2,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.5, 0.0, 0.5, 0.0, 0.0, 0.0, 0.5],
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"] * 2
        + ["full_attention"],
    },
    "gemma4_text": HEAD
    | WINDOW
    | {
        "hidden_size_per_layer_input": 4,
        "vocab_size_per_layer_input": 61,
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "global_head_dim": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"] * 2
        + ["full_attention"],
    },
    "qwen3_next": MOE | DELTA | {"shared_expert_intermediate_size": 8, "mlp_only_layers": [3]},
    "qwen3_5_text": DELTA,
    "qwen3_5_moe_text": MOE | DELTA | {"shared_expert_intermediate_size": 8},
    "olmo_hybrid": DELTA,
    "jamba": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "mamba_d_state": 8,
    },
    "bamba": MAMBA | {"attn_layer_indices": [2, 5, 6]},
    "granitemoehybrid": MAMBA
    | LOCAL
    | {
        "shared_intermediate_size": 8,
        "layer_types": ["mamba", "mamba", "attention", "mamba", "attention", "mamba", "mamba"],
    },
    "lfm2": {"full_attn_idxs": [2, 5], "conv_L_cache": 3},
    "falcon_h1": MAMBA | HEAD,
    "mamba": STATE,
    "mamba2": STATE | {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "falcon_mamba": STATE,
    "nemotron_h": {
        "hybrid_override_pattern": "M*-EMM*",
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "moe_shared_expert_intermediate_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
    }
    | HEAD,
}
# Rows whose cut must fit the model's own rhythm.
KEEPS: dict[str, tuple[int, ...]] = {
    "jamba": (0, 3, 4, 6),
    "gemma3n_text": (0, 3, 4, 6),
    "gemma4_text": (0, 3, 4, 6),
    "gemma4": (0, 3, 4, 6),
}
# Configs that derive the kinds of layers from other fields: those after the cut, by hand.
BY_HAND: dict[str, dict[str, Any]] = {
    "jamba": {"attn_layer_period": 4, "attn_layer_offset": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "gemma3n_text": {"num_kv_shared_layers": 1},
    "gemma4_text": {"num_kv_shared_layers": 1},
    "gemma4": {"num_kv_shared_layers": 1},
}

VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,  # as many as the decoder has
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
QWEN_VISION: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 8, "out_hidden_size": 32}
QWEN_VISION |= {"hidden_size": 16, "intermediate_size": 24}
ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}}
# model_type → the decoder's model_type and further sizes of it, and the vision tower's.
WRAPPED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma3": ("gemma3_text", {}, VISION),
    "gemma4": (
        "gemma4_text",
        {},
        VISION | {"head_dim": 8, "num_key_value_heads": 2, "model_type": "gemma4_vision"},
    ),
    "paligemma": ("gemma", {}, VISION | {"projection_dim": 32}),
    "mistral3": ("mistral", {}, VISION | {"head_dim": 8, "model_type": "pixtral"}),
    "llava": ("llama", {}, VISION),
    "llava_next": ("qwen2", {}, VISION),
    "llava_next_video": ("llama", {}, VISION),
    "llava_onevision": ("qwen2", {}, VISION),
    "vipllava": ("llama", {}, VISION),
    "video_llava": ("llama", {}, VISION),
    "aya_vision": ("cohere2", {}, VISION),
    "cohere2_vision": ("cohere2", {}, VISION),
    "got_ocr2": ("qwen2", {}, VISION | {"window_size": 2, "global_attn_indexes": [1]}),
    "internvl": ("qwen2", {}, VISION | {"image_size": [16, 16], "patch_size": [8, 8]}),
    "idefics3": ("llama", {}, VISION),
    "smolvlm": ("llama", {}, VISION),
    "qwen2_vl": ("qwen2", ROPE, {"depth": 2, "embed_dim": 16, "num_heads": 2, "hidden_size": 32}),
    "qwen2_5_vl": ("qwen2", ROPE, QWEN_VISION | {"fullatt_block_indexes": [1]}),
    "qwen3_vl": ("qwen3", ROPE, QWEN_VISION | {"deepstack_visual_indexes": [0, 1]}),
    "qwen3_vl_moe": ("qwen3_moe", ROPE, QWEN_VISION | {"deepstack_visual_indexes": [0, 1]}),
    "qwen3_5": ("qwen3_5_text", {}, QWEN_VISION),
    "qwen3_5_moe": ("qwen3_5_moe_text", {}, QWEN_VISION),
    "llama4": (
        "llama4_text",
        {},
        VISION
        | {"vision_output_dim": 16, "projector_input_dim": 16}
        | {"projector_output_dim": 16, "intermediate_size": 64},
    ),
}


def random_weights(model: transformers.PreTrainedModel, seed: int = 0) -> Any:
    """Every weight random, in float32, of a size that keeps numbers apart and finite."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1 and "norm" in name and name.endswith("weight"):
                weight.copy_(1 + 0.1 * noise)
            elif weight.ndim < 2 or "A_log" in name:
                weight.copy_(0.1 * noise)
            else:
                weight.copy_(noise * weight.shape[-1] ** -0.5)
    return model.eval()


def text_model(model_type: str, **options: Any) -> Any:
    """A causal language model with random weights."""
    config = transformers.AutoConfig.for_model(
        model_type, **({**BASE, **SIZES[model_type]} | options)
    )
    config.bos_token_id = config.eos_token_id = 0
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return random_weights(model)


def wrapped_model(model_type: str) -> Any:
    """A decoder beside a vision tower, with random weights."""
    text, more, vision = WRAPPED[model_type]
    inner = {**BASE, **SIZES[text], **more}
    parent = transformers.AutoConfig.for_model(model_type)
    if type(parent.get_text_config()).model_type in transformers.CONFIG_MAPPING:
        inner["model_type"] = type(parent.get_text_config()).model_type
    if model_type == "llava_next":
        inner["model_type"] = text  # one that is not the usual
    tower = dict(vision)
    if "model_type" not in tower:
        tower["model_type"] = parent.vision_config.model_type
    config = transformers.AutoConfig.for_model(
        model_type, text_config=inner, vision_config=tower, image_token_id=60
    )
    model = transformers.AutoModelForImageTextToText.from_config(
        config, attn_implementation="eager"
    )
    return random_weights(model)


def write_model(folder: Path, model_type: str, **options: Any) -> Any:
    """Save it as transformers would; returns the model."""
    model = (
        wrapped_model(model_type) if model_type in WRAPPED else text_model(model_type, **options)
    )
    model.save_pretrained(folder)
    return model
