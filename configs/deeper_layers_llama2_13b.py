"""Deeper Layers' healing of Llama-2-13B (arXiv 2403.17887): 10 of 40 layers go, QLoRA on C4.

Stated in the paper: rank 64, peak learning rate 3e-4, 4096 tokens; the rest in `healing_config`.
Ours: 10 layers, where the paper removes every number. MMLU falls to chance at 45-55 % of the
layers.

chopjax train --config configs/deeper_layers_llama2_13b.py --workdir runs/llama2-13b-healed \\
    --config.data.train=C4_STORE --config.data.evaluation=C4_VALIDATION_STORE
"""

from ml_collections import ConfigDict

from chopjax.train.deeper_layers import healing_config


def get_config() -> ConfigDict:
    config = healing_config(rank=64, peak_learning_rate=3e-4, length=4096)
    config.model = "meta-llama/Llama-2-13b-hf"
    config.chop.remove = "10"
    config.compute.remat, config.compute.microbatches = "full", 16
    return config
