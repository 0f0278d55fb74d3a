"""What the head of a model that is not trained reads of each prompt. The demonstrations are
computed once; all prompts meet their keys and values.

Axes: S tokens of the demonstrations, E width of what the head reads, X examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from chopjax import interrupts
from chopjax.classify.model import last_hidden, read_past
from chopjax.classify.parts import FeaturePart, Shown, by_length, token_part
from chopjax.classify.prompts import Prompts
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import Params


class Reader(NamedTuple):
    """Two programs of one depth. past: (params, Shown) → decoder.Past. hidden: (params, batch,
    past) → [B, E]."""

    past: Callable[..., Any]
    hidden: Callable[..., jax.Array]


def make_reader(config: ModelConfig, compute: Compute) -> Reader:
    @jax.jit
    def past(params: Params, before: Shown) -> Any:
        return read_past(params, config, compute, before.tokens_1S, before.length)

    @jax.jit
    def hidden(params: Params, batch: Mapping[str, Any], past: Any) -> jax.Array:
        return last_hidden(params, config, compute, batch, past).astype(np.float32)

    return Reader(past, hidden)


def read_features(
    reader: Reader,
    params: Params,
    parts: Mapping[str, Prompts],
    before: Shown,
    buckets: tuple[int, ...],
    advance: Callable[[float], None] = lambda share: None,
) -> dict[str, FeaturePart]:
    """Name → features of its prompts.

    before: what all prompts begin with. buckets: what the rest of each is padded to. advance: told
    of shares of the work.
    """
    past = reader.past(params, before)
    total = sum(len(prompts.ids) for prompts in parts.values())
    features = {}
    for name, prompts in parts.items():
        part = token_part(prompts, buckets, skip=int(before.length))
        rows: list[tuple[list[int], jax.Array]] = []
        for numbers, batch in by_length(part):
            interrupts.check()
            rows.append((numbers, reader.hidden(params, batch, past)))
            advance(len(numbers) / total)
        width = rows[0][1].shape[1]
        features_XE = np.zeros((len(prompts.ids), width), np.float32)
        for numbers, hidden in rows:
            features_XE[numbers] = np.asarray(hidden)[: len(numbers)]
        features[name] = FeaturePart(features_XE, prompts.labels)
    return features
