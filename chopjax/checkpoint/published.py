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


# arXiv 2307.09288, table 1, and the repositories' config.json.
CONFIGS: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-2-7b-hf": _llama2(4096, 11008, 32, 32, 32),
    "meta-llama/Llama-2-13b-hf": _llama2(5120, 13824, 40, 40, 40),
    "meta-llama/Llama-2-70b-hf": _llama2(8192, 28672, 80, 64, 8),
}
