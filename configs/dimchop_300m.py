"""Just CHOP's width counterpart on its own 300M decoder (DimCHOP, arXiv 2305.14864), on C4.

As configs/just_chop_300m.py, but no layer goes: of every matrix in the blocks half of the input
columns become zero while training goes on. Stated in the paper: scores that are PLATON's, the same
share in every matrix, a share that grows. Ours, since it gives no numbers: PLATON's decays,
interval and cubic schedule; the first zeros when a chop would be, the last ones half-way.

chopjax train --config configs/dimchop_300m.py --workdir runs/300m-dimchop \\
    --config.data.train=C4_STORE --config.data.evaluation=C4_VALIDATION_STORE
"""

from ml_collections import ConfigDict

from chopjax.train.just_chop import palm_config

TOKENS = 20e9


def get_config() -> ConfigDict:
    config = palm_config(peak_learning_rate=3.0e-4, tokens=TOKENS)
    config.model = "runs/300m-parent"
    config.dimchop.final = 0.5
    config.dimchop.start = 500
    config.total_steps += config.dimchop.start
    config.dimchop.end = config.total_steps // 2
    return config
