"""Just CHOP's own 1.1B decoder from random weights (arXiv 2305.14864), on one epoch of C4.

chopjax prepare C4 --tokenizer EleutherAI/gpt-neox-20b --output C4_STORE
chopjax train --config configs/just_chop_1b_parent.py --workdir runs/1b-parent \\
    --config.data.train=C4_STORE --config.data.evaluation=C4_VALIDATION_STORE

Then configs/just_chop_1b.py chops and heals it.
"""

from ml_collections import ConfigDict

from chopjax.train.just_chop import TOKENS, palm_config, palm_shape


def get_config() -> ConfigDict:
    config = palm_config(peak_learning_rate=2.0e-4, tokens=TOKENS)
    config.scratch = palm_shape(width=2048)
    config.tokenizer = "EleutherAI/gpt-neox-20b"
    return config
