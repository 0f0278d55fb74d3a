"""Llama-2-13B at half its layers, as in just_chop_llama2_13b.py, on one node of 8 H100s.

What differs is how it computes: parameters in parts over all eight GPUs, and a batch in 128 parts.

chopjax train --config configs/just_chop_llama2_13b_h100.py --workdir runs/llama2-13b-half \\
    --config.data.train=C4_STORE
"""

from ml_collections import ConfigDict

from chopjax.train.just_chop import llama2_config


def get_config() -> ConfigDict:
    config = llama2_config()
    config.model = "meta-llama/Llama-2-13b-hf"
    config.chop.strategy = "input"
    config.chop.remove = "0.5"
    config.mesh.data = 1
    config.compute.microbatches = 128
    config.compute.loss_chunk = 4096
    return config
