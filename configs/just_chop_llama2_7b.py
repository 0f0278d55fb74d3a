"""Just CHOP's Llama-2-7B at half its layers (arXiv 2305.14864), healed on C4.

`llama2_config` has the paper's figures: AdamW, 4M tokens a batch, peak learning rate 3e-4, 500
steps with all layers first, 160B tokens. The paper keeps layers 0 and 17-31; --print-config shows
every setting.

chopjax train --config configs/just_chop_llama2_7b.py --workdir runs/llama2-7b-half \\
    --config.data.train=C4_STORE --config.data.evaluation=C4_VALIDATION_STORE
"""

from ml_collections import ConfigDict

from chopjax.train.just_chop import llama2_config


def get_config() -> ConfigDict:
    config = llama2_config()
    config.model = "meta-llama/Llama-2-7b-hf"
    config.chop.keep = "0,17-31"
    config.compute.after_chop.microbatches = 2  # what half of the layers leave room for
    return config
