"""Just CHOP's own 300M decoder from random weights (arXiv 2305.14864), on one epoch of C4.

chopjax prepare C4 --tokenizer EleutherAI/gpt-neox-20b --output C4_STORE
chopjax train --config configs/just_chop_300m_parent.py --workdir runs/300m-parent \\
    --config.data.train=C4_STORE --config.data.evaluation=C4_VALIDATION_STORE

Then configs/just_chop_300m.py chops and heals it.
"""

from ml_collections import ConfigDict

from chopjax.train.just_chop import TOKENS, palm_config, palm_shape


def get_config() -> ConfigDict:
    config = palm_config(peak_learning_rate=3.0e-4, tokens=TOKENS)
    config.scratch = palm_shape(width=1024)
    config.tokenizer = "EleutherAI/gpt-neox-20b"
    return config
