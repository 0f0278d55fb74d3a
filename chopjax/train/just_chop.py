"""Just CHOP (arXiv 2305.14864): what recipes of several sizes begin with."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from chopjax.train.settings import default_config

TOKENS = 160e9  # one epoch of C4
BATCH, LENGTH = 2048, 2048  # 4M tokens

# Of v5p: collectives that run on the SparseCores, beside the products, and not before them.
SPARSE_CORE_COLLECTIVES = ",".join(
    f"xla_tpu_enable_sparse_core_collective_offload_{kind}=true"
    for kind in ("all_gather", "2d_all_gather", "reduce_scatter", "all_reduce")
)


def one_machine_config() -> ConfigDict:
    """All settings but the model, the layers that stay and the data, to heal a small chop where one
    machine is all that there is: the paper's optimizer, with its peak rate for 300M parameters and
    for 7B; everything else is ours."""
    config = default_config()
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


def palm_shape(width: int) -> dict[str, Any]:
    """config.json of the paper's own decoders: 24 layers of attention and a gated feed-forward side
    by side, one layer norm before them, another on queries and keys. It is what transformers calls
    `cohere`, with use_qk_norm and unscaled logits.

    Stated: the block, its width, 16 heads, 24 layers. Inferred from the four sizes in parameters
    (300M, 1.1B and their halves): a feed-forward of twice the width, tied embeddings, a vocabulary
    of about 50,000, here GPT-NeoX's; one scale of the inner norms for each head.
    """
    return {
        "model_type": "cohere",
        "architectures": ["CohereForCausalLM"],
        "vocab_size": 50_432,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "max_position_embeddings": 2048,
        "rope_theta": 10_000.0,
        "use_qk_norm": True,
        "logit_scale": 1.0,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
        "dtype": "float32",
    }


def palm_config(peak_learning_rate: float, tokens: float) -> ConfigDict:
    """All settings but the model, the layers that stay and the data, for the paper's own decoders.

    Stated: Lion with betas (0.9, 0.95) and weight decay 1e-4, none on norms and biases; batches of
    2M tokens; 2,000 warm-up steps, cosine to a tenth. Inferred: sequences of 2048 tokens. Ours:
    bfloat16 products, clipping at 1, and what follows from `compute.dtype` on.
    """
    config = default_config()
    config.data.batch_size = 1024
    config.data.sequence_length = LENGTH
    config.total_steps = round(tokens / (config.data.batch_size * LENGTH))

    config.optimizer.name = "lion"
    config.optimizer.weight_decay = 1e-4
    config.optimizer.peak_learning_rate = peak_learning_rate
    config.optimizer.warmup_steps = 2000

    config.compute.dtype = "bfloat16"
    config.compute.remat = "full"
    config.mesh.data, config.mesh.fsdp = 1, -1

    config.evaluation.every = 1000
    config.checkpoints.every = 500
    config.checkpoints.keep_every = 5000
    return config
