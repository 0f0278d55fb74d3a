"""Every strategy at a quarter, a half and three quarters of the layers removed, then drawn.

chopjax sweep --config configs/sweep.py --workdir runs/sweep --config.model=PARENT \\
    --config.text.train=train.jsonl --config.text.held_out=held_out.jsonl --config.healed=True
"""

from ml_collections import ConfigDict

from chopjax.runs.settings import sweep_config


def get_config() -> ConfigDict:
    config = sweep_config()
    config.remove = "0.25,0.5,0.75"

    # Layers are measured on a part of the text to heal on.
    config.calibration.sequences = 128
    config.calibration.sequence_length = 256

    # The same small budget for every point: 300 x 16 x 256, 1.2 million tokens.
    config.heal.total_steps = 300
    config.heal.data.batch_size = 16
    config.heal.data.sequence_length = 256
    config.heal.optimizer.name = "lion"
    config.heal.optimizer.peak_learning_rate = 6e-4
    config.heal.optimizer.warmup_steps = 30
    return config
