"""Demonstrations computed once give what whole prompts give, whatever attention looks at."""

from __future__ import annotations

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.classify.features import make_reader, read_features
from chopjax.classify.parts import bucket_lengths, by_length, rounded_up, shown, token_part
from chopjax.classify.prompts import Prompts
from chopjax.models import decoder
from chopjax.models.compute import Compute

SHARED = 41


@pytest.mark.parametrize("family", ["qwen3", "mpt", "gpt2"])  # windows, ALiBi, learned positions
def test_beside_whole_prompts(family: str) -> None:
    model = checkpoints.random_model(family)
    config, params = checkpoints.in_memory(model, model.config.to_dict())
    params = jax.tree.map(jnp.asarray, params)
    drawn = np.random.default_rng(0)
    begin = drawn.integers(0, 97, SHARED)
    parts = {
        name: Prompts(
            [np.append(begin, drawn.integers(0, 97, n)).astype(np.int32) for n in lengths],
            np.zeros(len(lengths), np.int32),
        )
        for name, lengths in {"train": (3, 20, 9), "test": (1, 25)}.items()
    }
    done: list[float] = []
    features = read_features(
        make_reader(config, Compute()),
        params,
        parts,
        shown(parts["train"], SHARED, rounded_up(SHARED)),
        bucket_lengths([3, 20, 9, 1, 25], 400),
        done.append,
    )
    assert sum(done) == pytest.approx(1)
    whole = jax.jit(lambda tokens_BT: decoder.hidden_states(params, config, Compute(), tokens_BT))
    for name, prompts in parts.items():
        for numbers, batch in by_length(token_part(prompts, (80,))):
            hidden_BTE = np.asarray(whole(batch["tokens"]))
            expected_BE = hidden_BTE[np.arange(len(hidden_BTE)), batch["last"]][: len(numbers)]
            found_BE = features[name].features_XE[numbers]
            assert np.abs(found_BE - expected_BE).max() < 1e-4 * np.abs(expected_BE).max()
