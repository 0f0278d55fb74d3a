"""Heal a checkpoint that was chopped before: continued pretraining on one machine.

chopjax train --config configs/heal.py --workdir runs/heal --config.model=CHOPPED \\
    --config.data.train=TOKENS --config.data.evaluation=HELD_OUT_TOKENS
"""

from ml_collections import ConfigDict

from chopjax.train.just_chop import one_machine_config


def get_config() -> ConfigDict:
    return one_machine_config()
