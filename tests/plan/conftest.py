"""A recipe that is planned in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

TINY = """
from chopjax.train.settings import default_config
def get_config():
    config = default_config()
    config.scratch = {"architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 1024,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
    config.chop.keep = "0,3"
    config.data.batch_size, config.data.sequence_length = 8, 256
    config.compute.dtype, config.compute.remat = "bfloat16", "full"
    config.mesh.data, config.mesh.fsdp = 1, -1
    return config
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    return path
