"""The demo's parent: a small Llama from random weights, pretrained in a minute or two on two cores.

chopjax train --config configs/demo_parent.py --workdir demo/parent-run
"""

from ml_collections import ConfigDict

from chopjax.train.settings import default_config

SHAPE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 2048,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "dtype": "float32",
}


def get_config() -> ConfigDict:
    config = default_config()
    config.scratch = SHAPE
    config.tokenizer = "demo/text/tokenizer"
    config.data.train = "demo/tokens/train"
    config.data.evaluation = "demo/tokens/held_out"
    config.data.batch_size = 8
    config.data.sequence_length = 128
    config.total_steps = 500
    config.optimizer.name = "adamw"
    config.optimizer.peak_learning_rate = 3e-3
    config.optimizer.weight_decay = 0.1
    config.optimizer.warmup_steps = 30
    config.checkpoints.every = 250
    return config
