"""Just CHOP's distillation (arXiv 2305.14864v3, section 3.3) of Llama-2-7B into half its layers.

The paper adds to the next-token loss, without weights, the divergence from the teacher and the
differences of states, attention and embeddings (eq. 7-10). Here each of them has half its weight:
half the paper's loss, and with half its clip_norm the paper's updates. Lengths, rates and layers
are those of configs/just_chop_llama2_7b.py, which ended ahead of this at equal cost. Means over
tokens and width are ours, as the paper gives squares alone.

chopjax train --config configs/just_chop_llama2_7b_taught.py --workdir runs/llama2-7b-taught \\
    --config.data.train=C4_STORE --config.data.evaluation=C4_VALIDATION_STORE
"""

from ml_collections import ConfigDict

from chopjax.train.just_chop import llama2_config


def get_config() -> ConfigDict:
    config = llama2_config()
    config.model = "meta-llama/Llama-2-7b-hf"
    config.chop.keep = "0,17-31"

    config.teacher.model = "parent"
    config.teacher.logits = 0.5
    config.teacher.hidden = 0.5
    config.teacher.attention = 0.5
    config.teacher.embedding = 0.5
    config.optimizer.clip_norm /= 2
    return config
