"""Trees taken apart for cuDNN, which XLA stands in for, beside the same mask as numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.test_tree_attention import T, arrays, ends_of

from chopjax.models import tree_cudnn
from chopjax.models.masked_attention import attend_visible
from chopjax.models.scores import Scores
from chopjax.models.tree_attention import Tree, attend_tree

# A mask of cuDNN's is this much on the scores, and not minus infinity.
MASKED = -2.0 * 2**40


@pytest.fixture(autouse=True)
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Queries and keys of every block, of 10 queries of a row: 24 tokens end in a smaller one."""
    seen = []

    def by_xla(query, key, value, visible, scale) -> tuple[Any, Any]:
        assert visible.shape == (len(query), 1, query.shape[1], key.shape[1])
        seen.append((query.shape[1], key.shape[1]))
        groups = query.shape[2] // key.shape[2]
        key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
        score = scale * jnp.einsum("BQNH,BCNH->BNQC", query, key)
        score += jnp.where(visible, 0.0, MASKED)
        total = jax.nn.logsumexp(score, axis=-1, keepdims=True)
        return jnp.einsum("BNQC,BCNH->BQNH", jnp.exp(score - total), value), total[..., 0]

    monkeypatch.setattr(tree_cudnn, "BLOCK", 10)
    monkeypatch.setattr(tree_cudnn, "_attend", by_xla)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    return seen


@pytest.mark.parametrize("past_rows", [0, 1, 3], ids=["no past", "shared", "one a row"])
def test_the_same_as_the_mask(blocks: list[tuple[int, int]], past_rows: int):
    """Of three rows, one is plain text; of pasts of their own, the first is empty."""
    random = np.random.default_rng(0)
    (query, key, value), past = arrays(random, 3, past_rows)
    ends = np.stack([ends_of(random, T), ends_of(random, T), np.full(T, T)])
    tree = Tree(jnp.asarray(ends, jnp.int32))
    got = attend_tree(query, key, value, tree, past, Scores(scale=0.6))
    own = [(10, 10), (10, 20), (4, 24)]  # no key behind a block's last query
    before = {0: [], 1: [(30, 16), (30, 16), (12, 16)], 3: [(10, 16), (10, 16), (4, 16)]}
    assert blocks == own + before[past_rows]
    places = jnp.zeros((1, T), jnp.int32)
    want = attend_visible(query, key, value, tree.visible(T), places, past, Scores(scale=0.6))
    np.testing.assert_allclose(got, want, atol=2e-6)
