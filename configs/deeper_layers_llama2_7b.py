"""Deeper Layers' healing of Llama-2-7B (arXiv 2403.17887): 8 of 32 layers go, QLoRA on C4.

Stated in the paper: rank 2, peak learning rate 3e-4, 2048 tokens; the rest in `healing_config`.
Ours: 8 layers, where the paper removes every number. Rank 2 is the one of a sweep whose MMLU was
best; a lower rank means a higher loss on C4. MMLU falls to chance at 45-55 % of the layers.

chopjax train --config configs/deeper_layers_llama2_7b.py --workdir runs/llama2-7b-healed \\
    --config.data.train=C4_STORE --config.data.evaluation=C4_VALIDATION_STORE
"""

from ml_collections import ConfigDict

from chopjax.train.deeper_layers import healing_config


def get_config() -> ConfigDict:
    config = healing_config(rank=2, peak_learning_rate=3e-4, length=2048)
    config.model = "meta-llama/Llama-2-7b-hf"
    config.chop.remove = "8"
    return config
