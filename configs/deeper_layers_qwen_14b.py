"""Deeper Layers' healing of Qwen-14B (arXiv 2403.17887): 6 of 40 layers go, QLoRA on C4.

Stated in the paper: rank 64, peak learning rate 3e-4, 4096 tokens; the rest in `healing_config`.
Ours: 6 layers, where the paper removes every number. MMLU falls to chance at a fifth of the layers:
fewer go here. The paper's Qwen is the first one, whose code is not in transformers. This is
Qwen1.5, of the same shape. Its feed-forward alone has adapters; the paper's `c_proj` names an
attention matrix of the first Qwen, too (inferred).

chopjax train --config configs/deeper_layers_qwen_14b.py --workdir runs/qwen-14b-healed \\
    --config.data.train=C4_STORE --config.data.evaluation=C4_VALIDATION_STORE
"""

from ml_collections import ConfigDict

from chopjax.train.deeper_layers import healing_config


def get_config() -> ConfigDict:
    config = healing_config(rank=64, peak_learning_rate=3e-4, length=4096)
    config.model = "Qwen/Qwen1.5-14B"
    config.chop.remove = "6"
    config.compute.remat, config.compute.microbatches = "full", 16
    return config
