"""config.json of models that recipes in configs/ name, so that planning needs no download.

As their makers publish them on the Hugging Face hub; only the fields that have a meaning here.
"""

from __future__ import annotations

from typing import Any


def _llama2(width: int, mlp: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": mlp,
        "max_position_embeddings": 4096,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    }


def _qwen1_5(width: int, mlp: int, layers: int, heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": mlp,
        "max_position_embeddings": 32768,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": vocabulary,
    }


_MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
_PHI_2 = {
    "architectures": ["PhiForCausalLM"],
    "model_type": "phi",
    "hidden_act": "gelu_new",
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "partial_rotary_factor": 0.4,
    "qk_layernorm": False,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 51200,
}

# Llama 2: arXiv 2307.09288, table 1; all: the repositories' config.json.
CONFIGS: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-2-7b-hf": _llama2(4096, 11008, 32, 32, 32),
    "meta-llama/Llama-2-13b-hf": _llama2(5120, 13824, 40, 40, 40),
    "meta-llama/Llama-2-70b-hf": _llama2(8192, 28672, 80, 64, 8),
    "mistralai/Mistral-7B-v0.1": _MISTRAL_7B,
    "microsoft/phi-2": _PHI_2,
    "Qwen/Qwen1.5-7B": _qwen1_5(4096, 11008, 32, 32, 151936),
    "Qwen/Qwen1.5-14B": _qwen1_5(5120, 13696, 40, 40, 152064),
}
# Those that the hub gives to nobody without a token.
GATED = frozenset(name for name in CONFIGS if name.startswith("meta-llama/"))
