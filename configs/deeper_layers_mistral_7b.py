"""Deeper Layers' healing of Mistral-7B (arXiv 2403.17887): 8 of 32 layers go, QLoRA on C4.

Stated in the paper: rank 4, peak learning rate 3e-6, 2048 tokens; the rest in `healing_config`.
Ours: 8 layers, where the paper removes every number. Rank 4 is the one of a sweep whose MMLU was
best; a lower rank means a higher loss on C4. MMLU falls to chance at 35 % of the layers.

chopjax train --config configs/deeper_layers_mistral_7b.py --workdir runs/mistral-7b-healed \\
    --config.data.train=C4_STORE --config.data.evaluation=C4_VALIDATION_STORE
"""

from ml_collections import ConfigDict

from chopjax.train.deeper_layers import healing_config


def get_config() -> ConfigDict:
    config = healing_config(rank=4, peak_learning_rate=3e-6, length=2048)
    config.model = "mistralai/Mistral-7B-v0.1"
    config.chop.remove = "8"
    return config
