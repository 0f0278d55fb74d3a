"""The families of decoders, as every parametrised test reads them.

SIZES: family → keys of a tiny config.json, in which the layers are of every kind that the family
has. OPTIONS: (family, further keys): what else its config.json can say.
"""

from __future__ import annotations

from typing import Any

WINDOWS = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
SIZES: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    },
    "qwen3": {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "max_position_embeddings": 512,
        "use_sliding_window": True,
        "sliding_window": 7,
        "layer_types": WINDOWS,
    },
    "gpt2": {"vocab_size": 97, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 512},
    "opt": {
        "vocab_size": 97,
        "hidden_size": 32,
        "ffn_dim": 56,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "word_embed_proj_dim": 32,
    },
}
NAMES = sorted(SIZES)

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
