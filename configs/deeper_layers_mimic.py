"""Block mimic: the layers before a gap learn what the removed ones handed on.

Proposed in The Unreasonable Ineffectiveness of the Deeper Layers (arXiv 2403.17887, footnote 9,
eq. 8) and never run there: to the next-token loss comes the squared difference between what enters
the parent's first layer behind the gap and what enters the chop's. The weight is ours.

chopjax train --config configs/deeper_layers_mimic.py --workdir runs/mimic \\
    --config.model=CHOPPED --config.data.train=TOKENS --config.data.evaluation=HELD_OUT_TOKENS
"""

from ml_collections import ConfigDict

from chopjax.train.just_chop import one_machine_config


def get_config() -> ConfigDict:
    config = one_machine_config()  # as configs/heal.py
    config.teacher.model = "parent"
    config.teacher.logits = 0.0  # next-token loss alone, and
    config.teacher.mimic = 1.0
    return config
