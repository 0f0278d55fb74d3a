"""configs/just_chop_llama2_70b.py with collectives that run on the SparseCores of v5p.

Small microbatches gather the parameters often, which pays because the SparseCores do it beside the
products. That is what the compiled program says (`chopjax plan --config
configs/just_chop_llama2_70b_sparse_cores.py --topology v5p:4x4x8`): these options have not run on
hardware yet.

chopjax train --config configs/just_chop_llama2_70b_sparse_cores.py --workdir runs/half \\
    --config.data.train=C4_STORE --config.data.evaluation=C4_VALIDATION_STORE
"""

from ml_collections import ConfigDict

from chopjax.train.just_chop import SPARSE_CORE_COLLECTIVES, llama2_config


def get_config() -> ConfigDict:
    config = llama2_config()
    config.model = "meta-llama/Llama-2-70b-hf"
    config.chop.strategy = "input"
    config.chop.remove = "0.5"
    config.optimizer.peak_learning_rate = 1.5e-4
    config.compute.microbatches = 16
    config.compute.after_chop.microbatches = 4
    config.compute.compiler_options = SPARSE_CORE_COLLECTIVES
    return config
