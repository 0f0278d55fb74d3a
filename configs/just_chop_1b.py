"""Just CHOP's ablations on its own 1.1B decoder, 12 of 24 layers (arXiv 2305.14864), healed on C4.

Stated in the paper, beside what `palm_config` sets: peak learning rate 2.0e-4; 500 steps with all
layers first; 20B tokens; `input` was the best at this size.
The parent is not public; configs/just_chop_1b_parent.py trains one from random weights.

chopjax train --config configs/just_chop_1b.py --workdir runs/1b-half \\
    --config.data.train=C4_STORE --config.data.evaluation=C4_VALIDATION_STORE
"""

from ml_collections import ConfigDict

from chopjax.train.just_chop import palm_config

TOKENS = 20e9


def get_config() -> ConfigDict:
    config = palm_config(peak_learning_rate=2.0e-4, tokens=TOKENS)
    config.model = "runs/1b-parent"
    config.chop.strategy = "input"
    config.chop.remove = "0.5"
    config.chop.after_steps = 500
    config.total_steps += config.chop.after_steps
    return config
