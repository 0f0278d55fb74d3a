"""The demo: half of the parent's layers go, the rest heals on the text it was pretrained on.

chopjax run --config configs/demo.py --workdir demo/run
"""

from ml_collections import ConfigDict

from chopjax.runs.settings import pipeline_config


def get_config() -> ConfigDict:
    config = pipeline_config()
    config.model = "demo/parent"
    config.text.train = "demo/text/train.jsonl"
    config.text.held_out = "demo/text/held_out.jsonl"

    config.chop.strategy = "input"
    config.chop.remove = "0.5"

    config.heal.data.batch_size = 8
    config.heal.data.sequence_length = 128
    config.heal.total_steps = 100
    config.heal.optimizer.peak_learning_rate = 6e-4
    config.heal.optimizer.warmup_steps = 20
    config.heal.evaluation.every = 25
    config.heal.checkpoints.every = 50

    config.score.tasks = "demo_endings"
    config.score.include_path = "demo/text/tasks"
    config.score.limit = 100
    return config
