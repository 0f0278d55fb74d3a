"""Just CHOP's recipe (arXiv 2305.14864) carried over to Llama-2-13B: 20 of 40 layers, on C4.

The paper ends at 7B. Carried over from there: `input` (keep 0 and 21-39) and all that
`llama2_config` sets; --print-config shows it. The peak learning rate is Llama-2's own for this
size, 3e-4 (arXiv 2307.09288, section 2.1), as the paper does at 7B.

Mesh and microbatches are for 128 chips of v5p (`chopjax plan --config
configs/just_chop_llama2_13b.py --topology v5p:4x4x8`).

chopjax train --config configs/just_chop_llama2_13b.py --workdir runs/llama2-13b-half \\
    --config.data.train=C4_STORE --config.data.evaluation=C4_VALIDATION_STORE
"""

from ml_collections import ConfigDict

from chopjax.train.just_chop import llama2_config


def get_config() -> ConfigDict:
    config = llama2_config()
    config.model = "meta-llama/Llama-2-13b-hf"
    config.chop.strategy = "input"
    config.chop.remove = "0.5"
    config.compute.microbatches, config.compute.after_chop.microbatches = 2, 1
    return config
