"""Heal a checkpoint that was chopped before with its parent as teacher: the logits alone.

The loss is the divergence from the parent's distribution of the next token and no more; what of
the text itself is learned besides is 1 - teacher.logits. The parent is found by the checkpoint's
chopjax.json; where it has moved, give its folder or hub id as teacher.model.

chopjax train --config configs/distill.py --workdir runs/distilled --config.model=CHOPPED \\
    --config.data.train=TOKENS --config.data.evaluation=HELD_OUT_TOKENS
"""

from ml_collections import ConfigDict

from chopjax.train.just_chop import one_machine_config


def get_config() -> ConfigDict:
    config = one_machine_config()  # as configs/heal.py
    config.teacher.model = "parent"
    config.teacher.logits = 1.0
    config.teacher.temperature = 1.0
    return config
