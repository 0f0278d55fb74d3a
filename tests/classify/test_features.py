"""Demonstrations computed once give what whole prompts give, whatever attention looks at."""

from __future__ import annotations

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.classify.features import make_reader, read_features
from chopjax.classify.model import last_hidden
from chopjax.classify.parts import bucket_lengths, by_length, rounded_up, token_part
from chopjax.classify.prompts import Prompts
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
        SHARED,
        rounded_up(SHARED),
        bucket_lengths([3, 20, 9, 1, 25], 400),
        done.append,
    )
    assert sum(done) == pytest.approx(1)
    whole = jax.jit(lambda batch: last_hidden(params, config, Compute(), batch))
    for name, prompts in parts.items():
        for numbers, batch in by_length(token_part(prompts, (80,))):
            expected_BE = np.asarray(whole(batch))[: len(numbers)]
            found_BE = features[name].features_XE[numbers]
            assert np.abs(found_BE - expected_BE).max() < 1e-4 * np.abs(expected_BE).max()
