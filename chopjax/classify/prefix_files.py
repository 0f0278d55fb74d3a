"""Virtual tokens as the adapter that peft loads.

    FOLDER/adapter_config.json, FOLDER/adapter_model.safetensors

peft (0.21) holds them as one table `prompt_embeddings` [S, L * 2 * K * H], where the keys of layer
l are at 2l and its values at 2l + 1; a classifier's head stands beside it and in the model too.
Axes: S virtual tokens, L layers, K key/value heads, H head size.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from chopjax.checkpoint.writer import Tensor, write_file
from chopjax.classify.model import SCORE
from chopjax.models.parameters import Params


def write_prefix(folder: Path, trainable: Params, base: Path) -> None:
    """trainable: `prefix` with `key` and `value` [L, S, K, H], and the classifier's head where
    there is one. base: the model that they stand before."""
    prefix = trainable["prefix"]
    both_LPSKH = np.stack([np.asarray(prefix[name]) for name in ("key", "value")], axis=1)
    layers, _, tokens, heads, size = both_LPSKH.shape
    arrays = {"prompt_embeddings": np.moveaxis(both_LPSKH, 2, 0).reshape(tokens, -1)}
    if SCORE in trainable:
        arrays["base_model.score.weight"] = np.asarray(trainable[SCORE]["kernel"]).T
    config = {
        "peft_type": "PREFIX_TUNING",
        "task_type": "SEQ_CLS" if SCORE in trainable else "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "inference_mode": True,
        "num_virtual_tokens": tokens,
        "num_layers": layers,
        "num_attention_heads": heads,
        "token_dim": heads * size,
        "encoder_hidden_size": heads * size,
        "num_transformer_submodules": 1,
        "prefix_projection": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = [
        Tensor(name, "F32", array.shape, np.ascontiguousarray(array))
        for name, array in arrays.items()
    ]
    path = folder / "adapter_model.safetensors"
    write_file(path, tensors, {"format": "pt"}, lambda nbytes: None)
