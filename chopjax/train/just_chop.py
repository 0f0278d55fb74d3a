"""Just CHOP's healing of Llama-2 (arXiv 2305.14864), which recipes of several sizes begin with."""

from __future__ import annotations

from ml_collections import ConfigDict

from chopjax.train.settings import default_config

TOKENS = 160e9  # one epoch of C4
BATCH, LENGTH = 2048, 2048  # 4M tokens


def llama2_config() -> ConfigDict:
    """All settings but the model, the layers that stay and the data.

    Stated in the paper: AdamW with betas (0.9, 0.95) and weight decay 0.1, none on norms and
    biases; batches of 4M tokens; peak learning rate 3e-4, 2,000 warm-up steps, cosine to a tenth;
    500 steps with all layers first, for the optimizer's state; 160B tokens. Inferred: sequences of
    2048 tokens. Ours: bfloat16 products, clipping at 1, and what follows from `compute.dtype` on.
    """
    config = default_config()
    config.chop.after_steps = 500
    config.total_steps = config.chop.after_steps + round(TOKENS / (BATCH * LENGTH))

    config.data.batch_size = BATCH
    config.data.sequence_length = LENGTH

    config.optimizer.name = "adamw"
    config.optimizer.weight_decay = 0.1
    config.optimizer.peak_learning_rate = 3e-4
    config.optimizer.warmup_steps = 2000

    config.compute.dtype = "bfloat16"
    # In four parts a step has room to keep the products; `full` takes a quarter more FLOPs.
    config.compute.remat, config.compute.microbatches = "dots", 4
    # Parameters are gathered along two sides of the slice: over all three the compiler falls back
    # to all-reduces, which move twice as much and hide nothing.
    config.mesh.data, config.mesh.fsdp = 4, -1

    config.evaluation.every = 1000
    config.checkpoints.every = 500
    config.checkpoints.keep_every = 5000
    return config
