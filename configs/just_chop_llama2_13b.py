"""Just CHOP's recipe (arXiv 2305.14864) carried over to Llama-2-13B: 20 of 40 layers, on C4.

The paper ends at 7B. Carried over from there: `input` (keep 0 and 21-39), AdamW with betas (0.9,
0.95) and weight decay 0.1, batches of 4M tokens, 2,000 warm-up steps, cosine to a tenth, 500 steps
with all layers first, 160B tokens. The peak learning rate is Llama-2's own for this size, 3e-4
(arXiv 2307.09288, section 2.1), as the paper does at 7B.

The mesh is for 128 chips of v5p and fits there with room (`chopjax plan --config
configs/just_chop_llama2_13b.py --topology v5p:4x4x8`).

chopjax train --config configs/just_chop_llama2_13b.py --workdir runs/llama2-13b-half \\
    --config.data.train=C4_STORE --config.data.evaluation=C4_VALIDATION_STORE
"""

from ml_collections import ConfigDict

from chopjax.train.settings import default_config

TOKENS = 160e9
BATCH, LENGTH = 2048, 2048  # 4M tokens


def get_config() -> ConfigDict:
    config = default_config()
    config.model = "meta-llama/Llama-2-13b-hf"
    config.chop.strategy = "input"
    config.chop.remove = "0.5"
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
    config.compute.loss_chunk = 4096
    # Parameters are gathered along two sides of the slice: over all three the compiler falls back
    # to all-reduces, which move twice as much and hide nothing.
    config.mesh.data, config.mesh.fsdp = 4, -1

    config.evaluation.every = 1000
    config.checkpoints.every = 500
    config.checkpoints.keep_every = 5000
    return config
