"""Just CHOP's ablations on a 1.1B decoder, 12 of 24 layers (arXiv 2305.14864), healed on C4.

Stated in the paper: D = 2048, 16 heads, 24 layers; Lion with betas (0.9, 0.95) and weight decay
1e-4, none on norms and biases; batches of 2M tokens; peak learning rate 2e-4, 2,000 warm-up steps,
cosine to a tenth; 500 steps with all layers first; 20B tokens; `input` was best at this size.
Inferred: sequences of 2048 tokens. Ours: bfloat16 products, clipping at 1, the mesh.

The paper's own 1.1B model is not public, and its block (attention and feed-forward side by side)
is not among chopjax's families: bring a parent of about this size, such as TinyLlama-1.1B.

chopjax train --config configs/just_chop_1b.py --workdir runs/1b-half \\
    --config.model=PARENT --config.data.train=C4_STORE --config.data.evaluation=C4_VALIDATION_STORE
"""

from ml_collections import ConfigDict

from chopjax.train.settings import default_config

TOKENS = 20e9
BATCH, LENGTH = 1024, 2048  # 2M tokens


def get_config() -> ConfigDict:
    config = default_config()
    config.chop.strategy = "input"
    config.chop.remove = "0.5"
    config.chop.after_steps = 500
    config.total_steps = config.chop.after_steps + round(TOKENS / (BATCH * LENGTH))

    config.data.batch_size = BATCH
    config.data.sequence_length = LENGTH

    config.optimizer.name = "lion"
    config.optimizer.weight_decay = 1e-4
    config.optimizer.peak_learning_rate = 2e-4
    config.optimizer.warmup_steps = 2000

    config.compute.dtype = "bfloat16"
    config.compute.remat = "full"
    config.mesh.data, config.mesh.fsdp = 1, -1

    config.evaluation.every = 1000
    config.checkpoints.every = 500
    config.checkpoints.keep_every = 5000
    return config
