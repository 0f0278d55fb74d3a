"""Deeper Layers' healing of Phi-2 (arXiv 2403.17887): 6 of 32 layers go, QLoRA on C4.

Stated in the paper: rank 64, peak learning rate 2e-4, 2048 tokens; the rest in `healing_config`.
Ours: 6 layers, where the paper removes every number. MMLU falls to chance at a quarter of the
layers: fewer go here.

chopjax train --config configs/deeper_layers_phi2.py --workdir runs/phi2-healed \\
    --config.data.train=C4_STORE --config.data.evaluation=C4_VALIDATION_STORE
"""

from ml_collections import ConfigDict

from chopjax.train.deeper_layers import healing_config


def get_config() -> ConfigDict:
    config = healing_config(rank=64, peak_learning_rate=2e-4, length=2048)
    config.model = "microsoft/phi-2"
    config.chop.remove = "6"
    return config
