"""Just CHOP's Llama-2-7B at half its layers, as in just_chop_llama2_7b.py, on one node of 8 H100s.

What differs is how it computes: parameters in parts over all eight GPUs, a batch in 32 parts, and
4096 tokens of logits at a time. With all layers it needs more than the 75 % of a GPU that jax takes
by default:

XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 chopjax train --config configs/just_chop_llama2_7b_h100.py \\
    --workdir runs/llama2-7b-half --config.data.train=C4_STORE

(`XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 chopjax plan --config configs/just_chop_llama2_7b_h100.py
--topology h100:8` says what it takes). On two nodes or more, `mesh.data` is their number.
"""

from ml_collections import ConfigDict

from chopjax.train.just_chop import llama2_config


def get_config() -> ConfigDict:
    config = llama2_config()
    config.model = "meta-llama/Llama-2-7b-hf"
    config.chop.keep = "0,17-31"
    config.mesh.data = 1
    config.compute.microbatches = 32
    config.compute.loss_chunk = 4096
    return config
