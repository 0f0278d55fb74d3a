"""Deeper Layers' healing of Llama-2-70B (arXiv 2403.17887): 20 of 80 layers go, QLoRA on C4.

Stated in the paper: rank 8, peak learning rate 3e-5, 4096 tokens; the rest in `healing_config`.
Ours: 20 layers, where the paper removes every number. Rank 8 is the one of a sweep whose MMLU was
best; a lower rank means a higher loss on C4. MMLU falls to chance at 45-55 % of the layers.

The mesh is for eight chips of v5e and fits there (`chopjax plan --config
configs/deeper_layers_llama2_70b.py --topology v5e:2x4`).

chopjax train --config configs/deeper_layers_llama2_70b.py --workdir runs/llama2-70b-healed \\
    --config.data.train=C4_STORE --config.data.evaluation=C4_VALIDATION_STORE
"""

from ml_collections import ConfigDict

from chopjax.train.deeper_layers import healing_config


def get_config() -> ConfigDict:
    config = healing_config(rank=8, peak_learning_rate=3e-5, length=4096)
    config.model = "meta-llama/Llama-2-70b-hf"
    config.chop.remove = "20"
    config.compute.remat, config.compute.microbatches = "full", 2
    config.mesh.data, config.mesh.fsdp = 1, -1
    return config
