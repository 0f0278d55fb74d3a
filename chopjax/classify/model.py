"""From a prompt to a number a class.

The `lm` head gives the label words' logits alone; the `classifier` head is a linear map of the same
hidden state without bias, as transformers' …ForSequenceClassification have it.

Axes: B batch, T time, S past tokens, L layers, K key/value heads, H head size, E width of what the
head reads, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chopjax.models import decoder
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import INITIAL_STDDEV, Past
from chopjax.models.head import Head, head_of, logits
from chopjax.models.parameters import Params

SCORE = "score"  # the classifier head, beside a decoder's parameters


def last_hidden(
    params: Params,
    config: ModelConfig,
    compute: Compute,
    batch: Mapping[str, jax.Array],
    past: Past,
) -> jax.Array:
    """What the head reads at the end of each prompt, [B, E] in compute.dtype.

    batch: `tokens` [B, T], padded on the right, which no token before sees, and `last` [B]. past:
    what stands before all of them; the prompts' positions go on behind its visible tokens.
    """
    tokens_BT, last_B = batch["tokens"], batch["last"]
    B, T = tokens_BT.shape
    positions_1T = jnp.sum(past.visible_BS[:1], axis=1, keepdims=True) + jnp.arange(T)
    causal_BTT = jnp.broadcast_to(jnp.tri(T, dtype=bool), (B, T, T))
    positions_BT = jnp.broadcast_to(positions_1T.astype(jnp.int32), (B, T))
    hidden_BTE, _ = decoder.extend(
        params, config, compute, tokens_BT, positions_BT, causal_BTT, past
    )
    return hidden_BTE[jnp.arange(B), last_B]


def class_logits(
    params: Params,
    score: Params | None,
    config: ModelConfig,
    label_ids: tuple[int, ...],
    hidden_BE: jax.Array,
) -> jax.Array:
    """[B, C] float32. score: the classifier head; None: the label words' columns of the model's
    own head, so that no logits of the whole vocabulary are made."""
    if score is not None:
        return logits(Head(score["kernel"]), hidden_BE)
    whole, ids_C = head_of(params, config), np.array(label_ids)
    bias_C = None if whole.bias_V is None else whole.bias_V[ids_C]
    return logits(whole.replace(kernel_EV=whole.kernel_EV[:, ids_C], bias_V=bias_C), hidden_BE)


def init_score(config: ModelConfig, classes: int, key: jax.Array) -> Params:
    """A classifier head to begin with: normal, with the deviation of transformers' initializer."""
    shape = (config.table_dim, classes)
    return {"kernel": INITIAL_STDDEV * jax.random.normal(key, shape, jnp.float32)}


# ------------------------------------------------------------------------ What stands before


def read_past(
    params: Params,
    config: ModelConfig,
    compute: Compute,
    tokens_1S: Any,
    length: Any,
    prefix: Past | None = None,
) -> Past:
    """The keys and values of the first `length` of these tokens, once for all prompts that begin
    with them. The others are padding. prefix: what stands before them, and in what is returned."""
    S = tokens_1S.shape[1]
    numbers_1S = jnp.arange(S, dtype=jnp.int32)[None]
    positions_1S = numbers_1S if prefix is None else numbers_1S + prefix.visible_BS.shape[1]
    causal_1SS = jnp.tri(S, dtype=bool)[None]
    _, (key_LBSKH, value_LBSKH) = decoder.extend(
        params, config, compute, tokens_1S, positions_1S, causal_1SS, prefix
    )
    past = Past(key_LBSKH, value_LBSKH, numbers_1S < length, positions_1S)
    if prefix is None:
        return past
    return Past(
        jnp.concatenate([prefix.key_LBSKH, past.key_LBSKH], axis=2),
        jnp.concatenate([prefix.value_LBSKH, past.value_LBSKH], axis=2),
        jnp.concatenate([prefix.visible_BS, past.visible_BS], axis=1),
        jnp.concatenate([prefix.positions_BS, past.positions_BS], axis=1),
    )


def init_prefix(config: ModelConfig, tokens: int, key: jax.Array) -> Params:
    """Keys and values of virtual tokens in every layer, [L, S, K, H] each, N(0, 1): peft's
    PrefixTuningConfig without a projection (arXiv 2101.00190 trains them through one)."""
    shape = (config.num_layers, tokens, config.num_kv_heads, config.head_dim)
    return {
        name: jax.random.normal(each, shape, jnp.float32)
        for name, each in zip(("key", "value"), jax.random.split(key), strict=True)
    }


def prefix_past(prefix: Params, compute: Compute) -> Past:
    """Virtual tokens as a past that all prompts share. Their keys are learnt as attention meets
    them: no rotary embedding turns them."""
    key_LBSKH, value_LBSKH = (
        prefix[name][:, None].astype(compute.dtype) for name in ("key", "value")
    )
    positions_1S = jnp.arange(key_LBSKH.shape[2], dtype=jnp.int32)[None]
    return Past(key_LBSKH, value_LBSKH, jnp.ones_like(positions_1S, bool), positions_1S)
