"""Just CHOP's Llama-2-7B at half its layers (arXiv 2305.14864), healed on C4.

Stated in the paper: keep 0 and 17-31; AdamW with betas (0.9, 0.95) and weight decay 0.1, none on
norms and biases; batches of 4M tokens; peak learning rate 3e-4, 2,000 warm-up steps, cosine to a
tenth; 500 steps with all layers first, for the optimizer's state; 160B tokens (one epoch of C4).
Inferred: sequences of 2048 tokens. Ours: bfloat16 products, clipping at 1, the mesh.

chopjax train --config configs/just_chop_llama2_7b.py --workdir runs/llama2-7b-half \\
    --config.data.train=C4_STORE --config.data.evaluation=C4_VALIDATION_STORE
"""

from ml_collections import ConfigDict

from chopjax.train.settings import default_config

TOKENS = 160e9
BATCH, LENGTH = 2048, 2048  # 4M tokens


def get_config() -> ConfigDict:
    config = default_config()
    config.model = "meta-llama/Llama-2-7b-hf"
    config.chop.keep = "0,17-31"
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
    config.mesh.data, config.mesh.fsdp = 4, -1  # see just_chop_llama2_13b.py

    config.evaluation.every = 1000
    config.checkpoints.every = 500
    config.checkpoints.keep_every = 5000
    return config
