"""Heal a checkpoint that was chopped before with its parent as teacher: the logits alone.

The loss is the divergence from the parent's distribution of the next token and no more; what of
the text itself is learned besides is 1 - teacher.logits. The parent is found by the checkpoint's
chopjax.json; where it has moved, give its folder or hub id as teacher.model.

chopjax train --config configs/distill.py --workdir runs/distilled --config.model=CHOPPED \\
    --config.data.train=TOKENS --config.data.evaluation=HELD_OUT_TOKENS
"""

from ml_collections import ConfigDict

from chopjax.train.settings import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.teacher.model = "parent"
    config.teacher.logits = 1.0
    config.teacher.temperature = 1.0

    # As configs/heal.py has it.
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
