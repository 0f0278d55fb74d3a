"""Deeper Layers' healing of Qwen-7B (arXiv 2403.17887): 5 of 32 layers go, QLoRA on C4.

Stated in the paper: rank 64, peak learning rate 3e-4, 2048 tokens; the rest in `healing_config`.
Ours: 5 layers, where the paper removes every number. MMLU falls to chance at a fifth of the layers:
fewer go here. The paper's Qwen is the first one, whose code is not in transformers. This is
Qwen1.5, of the same shape. Its feed-forward alone has adapters; the paper's `c_proj` names an
attention matrix of the first Qwen, too (inferred).

chopjax train --config configs/deeper_layers_qwen_7b.py --workdir runs/qwen-7b-healed \\
    --config.data.train=C4_STORE --config.data.evaluation=C4_VALIDATION_STORE
"""

from ml_collections import ConfigDict

from chopjax.train.deeper_layers import healing_config


def get_config() -> ConfigDict:
    config = healing_config(rank=64, peak_learning_rate=3e-4, length=2048)
    config.model = "Qwen/Qwen1.5-7B"
    config.chop.remove = "5"
    config.compute.microbatches = 16  # the head, of 152k tokens, takes the room
    return config
