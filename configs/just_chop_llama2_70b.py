"""Just CHOP's recipe (arXiv 2305.14864) carried over to Llama-2-70B: 40 of 80 layers, on C4.

The paper ends at 7B. Carried over from there: `input` (keep 0 and 41-79) and all that
`llama2_config` sets; --print-config shows it. The peak learning rate is Llama-2's own for this
size, 1.5e-4 (arXiv 2307.09288, section 2.1), as the paper does at 7B.

Mesh, remat and microbatches are for 128 chips of v5p (`chopjax plan --config
configs/just_chop_llama2_70b.py --topology v5p:4x4x8 --search`).
configs/just_chop_llama2_70b_sparse_cores.py is faster still, by options that have not run on
hardware yet.

chopjax train --config configs/just_chop_llama2_70b.py --workdir runs/llama2-70b-half \\
    --config.data.train=C4_STORE --config.data.evaluation=C4_VALIDATION_STORE
"""

from ml_collections import ConfigDict

from chopjax.train.just_chop import llama2_config


def get_config() -> ConfigDict:
    config = llama2_config()
    config.model = "meta-llama/Llama-2-70b-hf"
    config.chop.strategy = "input"
    config.chop.remove = "0.5"
    config.optimizer.peak_learning_rate = 1.5e-4
    config.compute.remat, config.compute.microbatches = "full", 2
    config.compute.after_chop.remat, config.compute.after_chop.microbatches = "dots", 4
    return config
