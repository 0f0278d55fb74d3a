"""Any local model: halve it, heal it, compare. For a laptop or one accelerator.

chopjax run --config configs/chop_and_heal.py --workdir runs/halved \\
    --config.model=PARENT --config.text.train=train.jsonl --config.text.held_out=held_out.jsonl
"""

from ml_collections import ConfigDict

from chopjax.runs.settings import pipeline_config


def get_config() -> ConfigDict:
    config = pipeline_config()

    # Just CHOP's choice for Llama-2: the layers next to the input go (arXiv 2305.14864).
    config.chop.strategy = "input"
    config.chop.remove = "0.5"

    config.heal.total_steps = 400
    config.heal.data.batch_size = 16
    config.heal.data.sequence_length = 256

    # Lion as in the paper, with a rate for models of a few million parameters; the paper has 3e-4
    # for 300M parameters and for 7B.
    config.heal.optimizer.name = "lion"
    config.heal.optimizer.peak_learning_rate = 6e-4
    config.heal.optimizer.warmup_steps = 50

    config.heal.evaluation.every = 100
    config.heal.checkpoints.every = 100
    return config
