"""Ways of healing half a model, each with the same FLOPs or hours.

chopjax sweep --config configs/equal_compute.py --workdir runs/equal --budget 1e15 \\
    --config.model=PARENT --config.text.train=train.jsonl --config.text.held_out=held_out.jsonl
"""

from ml_collections import ConfigDict

from chopjax.sweep_settings import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.strategies = "input"
    config.remove = "0.5"
    config.methods = (
        "full,lora,qlora,qlora-int8,distill,repair,repair+full,repair+lora,repair+qlora,"
        "repair+distill,scratch"
    )
    config.budget = "1e15"

    # Least squares want some thousand tokens; these cost little beside the training.
    config.repair = "affine"
    config.calibration.sequences = 128
    config.calibration.sequence_length = 256

    config.heal.data.batch_size = 16
    config.heal.data.sequence_length = 256
    config.heal.optimizer.name = "lion"
    config.heal.optimizer.peak_learning_rate = 6e-4
    config.heal.optimizer.warmup_steps = 50
    # Adapters on the feed-forward alone, as in Deeper Layers (arXiv 2403.17887, appendix A).
    config.heal.adapter.rank = 64
    config.lora.optimizer.peak_learning_rate = 3e-3
    config.qlora.optimizer.peak_learning_rate = 3e-3
    # Random weights bear, and need, a higher rate than weights that know something.
    config.scratch.optimizer.peak_learning_rate = 1e-3
    return config
