"""Just CHOP's ablations on its own 300M decoder, 12 of 24 layers (arXiv 2305.14864), healed on C4.

Stated in the paper, beside what `palm_config` sets: peak learning rate 3.0e-4; 500 steps with all
layers first; 20B tokens; `max-gap` was the best at this size, beside `both`.
The parent is not public; configs/just_chop_300m_parent.py trains one from random weights.

chopjax train --config configs/just_chop_300m.py --workdir runs/300m-half \\
    --config.data.train=C4_STORE --config.data.evaluation=C4_VALIDATION_STORE
"""

from ml_collections import ConfigDict

from chopjax.train.just_chop import palm_config

TOKENS = 20e9


def get_config() -> ConfigDict:
    config = palm_config(peak_learning_rate=3.0e-4, tokens=TOKENS)
    config.model = "runs/300m-parent"
    config.chop.strategy = "max-gap"
    config.chop.remove = "0.5"
    config.chop.after_steps = 500
    config.total_steps += config.chop.after_steps
    return config
