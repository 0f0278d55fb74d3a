"""Heal a checkpoint that was chopped before: continued pretraining on one machine.

chopjax train --config configs/heal.py --workdir runs/heal --config.model=CHOPPED \\
    --config.data.train=TOKENS --config.data.evaluation=HELD_OUT_TOKENS
"""

from ml_collections import ConfigDict

from chopjax.train.settings import default_config


def get_config() -> ConfigDict:
    config = default_config()

    # Just CHOP's optimizer; its peak rate for 300M parameters and for 7B (arXiv 2305.14864).
    config.optimizer.name = "lion"
    config.optimizer.peak_learning_rate = 3e-4
    config.optimizer.warmup_steps = 200
    config.total_steps = 5000

    config.data.batch_size = 32
    config.data.sequence_length = 1024
    config.compute.microbatches = 4
    config.compute.remat = "dots"

    config.evaluation.every = 500
    config.checkpoints.every = 250
    return config
