"""Deeper Layers (arXiv 2403.17887): what recipes of several models begin with."""

from __future__ import annotations

from ml_collections import ConfigDict

from chopjax.train.settings import default_config


def healing_config(rank: int, peak_learning_rate: float, length: int) -> ConfigDict:
    """All settings but the model, how many layers go, and the data.

    Stated in the paper (appendices A.1, B.2, B.3): a base in four bits; LoRA on the matrices of
    the feed-forward alone, alpha = rank, dropout 0.05; C4; 5,000 steps of 16 sequences, 100 warm-up
    steps, cosine; rank, peak learning rate and length by model. Inferred, as the defaults of QLoRA
    and of Hugging Face's Trainer: NF4, without quantizing its scales; AdamW with betas (0.9, 0.999)
    and no weight decay, clipping at 1, cosine to zero. Ours: sequences are packed, where the paper
    cuts long texts off; bfloat16; the simple strategy of section 4.4, which needs no look at the
    removed layers; and what follows from `compute.dtype` on, for one accelerator of 16 GB.
    """
    config = default_config()
    config.total_steps = 5000
    config.chop.strategy = "deepest"

    config.data.batch_size = 16
    config.data.sequence_length = length

    config.adapter.rank = rank
    config.adapter.alpha = float(rank)
    config.adapter.dropout = 0.05
    config.adapter.targets = "mlp"
    config.adapter.base = "nf4"

    config.optimizer.name = "adamw"
    config.optimizer.peak_learning_rate = peak_learning_rate
    config.optimizer.warmup_steps = 100
    config.optimizer.final_fraction = 0.0
    config.optimizer.b1, config.optimizer.b2 = 0.9, 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0

    config.compute.dtype = config.compute.param_dtype = "bfloat16"
    # Two sequences at a time have room beside a 7B for their products: 12.5 of 16 GB.
    config.compute.remat, config.compute.microbatches = "dots", 8

    config.evaluation.every = 500
    config.checkpoints.every = 250
    return config
