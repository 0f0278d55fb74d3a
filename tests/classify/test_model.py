"""Label words' logits are columns of the whole head's."""

from __future__ import annotations

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.classify.model import class_logits, init_prefix, init_score, prefix_past
from chopjax.models.compute import Compute
from chopjax.models.head import head_of, logits

IDS = (7, 3, 90)


# Tied; a bias; a scale; a cap; an embedding table narrower than the model.
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gpt2", {}),
        ("phi", {}),
        ("cohere", {}),
        ("gemma2", {}),
        ("opt", {"word_embed_proj_dim": 16}),
    ],
)
def test_columns_of_the_head(family: str, options: dict[str, int]) -> None:
    model = checkpoints.random_model(family, **options)
    config, params = checkpoints.in_memory(model, model.config.to_dict())
    params = jax.tree.map(jnp.asarray, params)
    hidden = jax.random.normal(jax.random.key(0), (5, config.table_dim))
    whole = logits(head_of(params, config), hidden)
    some = class_logits(params, None, config, IDS, hidden)
    np.testing.assert_allclose(some, whole[:, IDS], rtol=1e-6, atol=1e-6)
    score = init_score(config, 3, jax.random.key(1))
    own = class_logits(params, score, config, IDS, hidden)
    np.testing.assert_allclose(own, hidden @ score["kernel"], rtol=1e-5, atol=1e-6)


def test_virtual_tokens_are_seen_by_all() -> None:
    model = checkpoints.random_model("llama")
    config, _ = checkpoints.in_memory(model, model.config.to_dict())
    prefix = init_prefix(config, 20, jax.random.key(0))
    past = prefix_past(prefix, Compute(dtype="bfloat16"))
    assert past.key_LBSKH.shape == past.value_LBSKH.shape == (4, 1, 20, 2, 8)
    assert past.key_LBSKH.dtype == jnp.bfloat16
    assert past.visible_BS.all()
    assert past.positions_BS.tolist() == [list(range(20))]
    drawn = np.stack([prefix["key"], prefix["value"]])
    assert abs(drawn.mean()) < 0.05
    assert abs(drawn.std() - 1) < 0.05
