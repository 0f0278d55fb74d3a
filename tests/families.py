"""The families of decoders, as every parametrised test reads them.

SIZES: family → keys of a tiny config.json, in which the layers are of every kind that the family
has. SPACE: family → key → what else config.json can say there; `draw` takes one of each at random.
OPTIONS: (family, further keys) that are tried in any case. SAMPLE, KINDS, BY_LAYER: families that
tests read whose subject is not what a family computes.
"""

from __future__ import annotations

import random
from typing import Any

WINDOWS = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
LLAMA: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
SIX: dict[str, Any] = LLAMA | {"num_hidden_layers": 6, "sliding_window": 30}
GPT = {"vocab_size": 97, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 512}
SIZES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen3": LLAMA
    | {
        "head_dim": 12,
        "use_sliding_window": True,
        "sliding_window": 7,
        "layer_types": WINDOWS,
    },
    "gpt2": GPT,
    "opt": {
        "vocab_size": 97,
        "hidden_size": 32,
        "ffn_dim": 56,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "word_embed_proj_dim": 32,
    },
    "mistral": LLAMA | {"sliding_window": 30},
    "ministral": LLAMA | {"head_dim": 12, "sliding_window": 30, "layer_types": WINDOWS},
    "qwen2": LLAMA | {"use_sliding_window": True, "sliding_window": 30, "max_window_layers": 2},
    "phi": LLAMA,
    "phi3": LLAMA | {"pad_token_id": 0, "original_max_position_embeddings": 512},
    "gpt_neox": LLAMA,
    "gemma": LLAMA | {"head_dim": 12},
    "gemma2": SIX | {"head_dim": 12},
    "gemma3_text": SIX | {"head_dim": 12, "sliding_window_pattern": 3},
    "smollm3": SIX | {"pad_token_id": 0, "use_sliding_window": True, "no_rope_layer_interval": 3},
    "olmo": LLAMA,
    "olmo2": LLAMA,
    "olmo3": SIX,
    "cohere": LLAMA,
    "cohere2": SIX,
    "granite": LLAMA
    | {
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "logits_scaling": 2.0,
    },
    "stablelm": LLAMA,
    "starcoder2": LLAMA | {"sliding_window": 30},
    "nemotron": LLAMA,
    "exaone4": SIX,
    "glm": LLAMA | {"head_dim": 12, "pad_token_id": 0, "partial_rotary_factor": 0.7},
    "glm4": LLAMA | {"head_dim": 12, "pad_token_id": 0, "partial_rotary_factor": 0.7},
    "helium": LLAMA | {"head_dim": 8},
    "ernie4_5": LLAMA | {"head_dim": 12},
    "seed_oss": LLAMA | {"head_dim": 12},
    "arcee": LLAMA,
    "internlm3": LLAMA | {"head_dim": 12},
    "hunyuan_v1_dense": LLAMA | {"head_dim": 12},
    "gptj": GPT | {"rotary_dim": 4},
    "gpt_neo": {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_layers": 4,
        "num_heads": 4,
        "max_position_embeddings": 512,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 30,
    },
    "mpt": {"vocab_size": 97, "d_model": 48, "n_heads": 6, "n_layers": 4, "max_seq_len": 512},
    "falcon": {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
    },
    "bloom": {"vocab_size": 97, "hidden_size": 48, "n_head": 6, "n_layer": 4, "seq_length": 512},
    "mixtral": LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": LLAMA | {"num_experts": 8, "num_experts_per_tok": 3},
    "qwen3_moe": LLAMA
    | {"head_dim": 12, "moe_intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 2},
}
NAMES = sorted(SIZES)
SAMPLE = ["gpt2", "llama", "opt", "qwen3"]
# One of every kind of block and of tensors.
KINDS = [*SAMPLE, "cohere2", "falcon", "gemma3_text", "glm4", "gpt_neox", "granite", "mixtral"]
KINDS += ["mpt", "olmo2", "phi"]
# For those who look at what single layers do: layers of two ropes, ALiBi, layers side by side.
BY_LAYER = [*SAMPLE, "cohere2", "gemma3_text", "mpt"]

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
THETA = {"rope_theta": 10_000.0}
OPTIONS = [
    ("llama", {}),
    ("llama", {"head_dim": 24}),
    ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    ("llama", {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}),
    ("llama", {"hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-3}),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.5} | THETA}),
    ("llama", {"rope_parameters": LLAMA3 | THETA}),
    ("llama", {"rope_parameters": YARN | THETA}),
    ("llama", {"rope_parameters": YARN | THETA | {"truncate": False, "beta_fast": 16}}),
    ("llama", {"rope_parameters": YARN | THETA | {"mscale": 0.8, "mscale_all_dim": 0.5}}),
    ("llama", {"rope_parameters": YARN | THETA | {"attention_factor": 1.3}}),
    ("qwen3", {}),
    ("qwen3", {"layer_types": None, "max_window_layers": 2, "sliding_window": 200}),
    ("qwen3", {"layer_types": None, "use_sliding_window": False, "tie_word_embeddings": True}),
    ("qwen3", {"attention_bias": True, "num_key_value_heads": 1, "head_dim": 8}),
    ("gpt2", {}),
    ("gpt2", {"n_inner": 48, "activation_function": "gelu", "tie_word_embeddings": False}),
    ("gpt2", {"activation_function": "relu", "layer_norm_epsilon": 1e-3}),
    ("opt", {}),
    ("opt", {"word_embed_proj_dim": 16}),
    ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    ("opt", {"tie_word_embeddings": False, "_remove_final_layer_norm": True}),
    ("opt", {"activation_function": "gelu", "tie_word_embeddings": False}),
]

ROPES = [
    None,
    {"rope_type": "linear", "factor": 2.5} | THETA,
    LLAMA3 | THETA,
    YARN | THETA,
    {"rope_type": "dynamic", "factor": 2.0} | THETA,
]
BOTH = [False, True]
Space = dict[str, list[Any]]
KV: Space = {"num_key_value_heads": [1, 2, 4]}
ACTIVATION: Space = {"hidden_act": ["silu", "gelu", "gelu_pytorch_tanh"]}
TIED: Space = {"tie_word_embeddings": BOTH}
COMMON: Space = KV | TIED | ACTIVATION | {"rope_parameters": ROPES}
BIASED: Space = COMMON | {"attention_bias": BOTH}
STRETCH = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.5, 3.0], "long_factor": [4.0] * 4}
LONG = STRETCH | {"original_max_position_embeddings": 512} | THETA
SPACE: dict[str, Space] = {
    "llama": BIASED | {"mlp_bias": BOTH, "head_dim": [8, 12]},
    "qwen3": BIASED | {"layer_types": [None, WINDOWS], "max_window_layers": [1, 3]},
    "gpt2": TIED | {"activation_function": ["gelu", "relu", "gelu_new"]} | {"n_inner": [None, 40]},
    "opt": {"word_embed_proj_dim": [16, 32]} | {"enable_bias": BOTH, "do_layer_norm_before": BOTH},
    "mistral": COMMON | {"sliding_window": [None, 5, 40], "head_dim": [8, 12]},
    "ministral": COMMON | {"layer_types": [None, WINDOWS], "sliding_window": [5, 40]},
    "qwen2": COMMON | {"use_sliding_window": BOTH, "max_window_layers": [0, 3]},
    "phi": KV
    | TIED
    | {"qk_layernorm": BOTH, "partial_rotary_factor": [0.5, 1.0], "hidden_act": ["gelu", "relu"]},
    "phi3": KV
    | TIED
    | {"sliding_window": [None, 20]}
    | {"max_position_embeddings": [512, 2048]}
    | {"rope_parameters": [None, LONG, LONG | {"attention_factor": 1.2}]},
    "gpt_neox": TIED
    | {"use_parallel_residual": BOTH, "attention_bias": BOTH}
    | {"rotary_pct": [0.25, 1.0]},
    "gemma": KV | TIED | {"attention_bias": BOTH, "hidden_act": ["gelu", "silu"]},
    "gemma2": KV
    | {"attn_logit_softcapping": [None, 0.5], "final_logit_softcapping": [None, 2.0]}
    | {"query_pre_attn_scalar": [7, 30], "hidden_activation": ["gelu", "silu"]}
    | TIED,
    "gemma3_text": KV
    | TIED
    | {"final_logit_softcapping": [None, 2.0], "query_pre_attn_scalar": [7, 30]}
    | {"sliding_window_pattern": [2, 4], "layer_types": [None, ["sliding_attention"] * 6]}
    | {"rope_scaling": [None, {"rope_type": "linear", "factor": 2.5}]},
    "smollm3": BIASED
    | {"mlp_bias": BOTH, "use_sliding_window": BOTH, "no_rope_layers": [None, [1, 0, 0, 1, 1, 0]]},
    "olmo": BIASED | {"clip_qkv": [None, 0.3]},
    "olmo2": BIASED,
    "olmo3": KV
    | TIED
    | {"attention_bias": BOTH, "rope_theta": [1e4, 5e5], "sliding_window": [5, 40]},
    "cohere": BIASED | {"use_qk_norm": BOTH, "logit_scale": [0.3, 1.0]},
    "cohere2": BIASED | {"logit_scale": [0.3, 1.0], "sliding_window": [5, 40]},
    "granite": BIASED | {"mlp_bias": BOTH, "attention_multiplier": [0.1, 1.0]},
    "stablelm": KV
    | TIED
    | {"use_qkv_bias": BOTH, "use_parallel_residual": BOTH, "partial_rotary_factor": [0.25, 0.75]},
    "starcoder2": COMMON | {"use_bias": BOTH, "sliding_window": [None, 5]},
    "nemotron": KV | TIED | {"attention_bias": BOTH, "mlp_bias": BOTH, "head_dim": [8, 12]},
    "exaone4": COMMON | {"sliding_window_pattern": [2, 3], "sliding_window": [5, 40]},
    "glm": KV | TIED | {"attention_bias": BOTH, "partial_rotary_factor": [0.5, 1.0]},
    "glm4": KV | TIED | {"attention_bias": BOTH, "partial_rotary_factor": [0.5, 1.0]},
    "helium": BIASED | {"mlp_bias": BOTH},
    "ernie4_5": COMMON | {"use_bias": BOTH},
    "seed_oss": BIASED | {"attention_out_bias": BOTH, "mlp_bias": BOTH},
    "arcee": BIASED | {"mlp_bias": BOTH, "hidden_act": ["relu2", "silu"]},
    "internlm3": COMMON,
    "hunyuan_v1_dense": KV
    | TIED
    | ACTIVATION
    | {"attention_bias": BOTH}
    | {"rope_parameters": [None, {"rope_type": "dynamic", "alpha": 50.0, "factor": 1.0} | THETA]},
    "gptj": {"rotary_dim": [2, 8], "n_inner": [None, 40]},
    "gpt_neo": TIED
    | {"attention_types": [[[["local"], 4]], [[["global"], 1], [["local"], 3]]]}
    | {"intermediate_size": [None, 40], "window_size": [5, 40]},
    "mpt": TIED
    | {"attn_config": [{}, {"clip_qkv": 0.3}, {"softmax_scale": 0.4}], "n_heads": [4, 6]},
    "falcon": TIED
    | {"bias": BOTH, "multi_query": BOTH, "num_ln_in_parallel_attn": [None, 1]}
    | {"new_decoder_architecture": BOTH, "num_kv_heads": [1, 2], "ffn_hidden_size": [None, 40]},
    "bloom": TIED | {"n_head": [4, 6]},
    "mixtral": COMMON
    | {"sliding_window": [None, 5, 40], "head_dim": [8, 12]}
    | {"num_local_experts": [2, 5], "num_experts_per_tok": [1, 2]},
    "olmoe": BIASED
    | {"clip_qkv": [None, 0.3], "norm_topk_prob": BOTH}
    | {"num_experts": [3, 8], "num_experts_per_tok": [1, 3]},
    "qwen3_moe": BIASED
    | {"use_sliding_window": BOTH, "sliding_window": [5, 40], "norm_topk_prob": BOTH}
    | {"num_experts": [3, 8], "num_experts_per_tok": [1, 3]},
}


def draw(family: str, seed: int) -> dict[str, Any]:
    """A config.json of the family: seed 0 gives SIZES, another one of each key of SPACE."""
    chosen = random.Random(f"{family} {seed}")
    space = SPACE[family].items() if seed else ()
    drawn = {key: chosen.choice(values) for key, values in space}
    return SIZES[family] | {key: value for key, value in drawn.items() if value is not None}
