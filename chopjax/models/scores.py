"""What attention's scores are beside q·k: one value that every kernel takes or refuses by name.

Axes: B batch, N query heads, K key/value heads, G = N/K, Q queries, S keys, X = Q·G queries that
share a key/value head, those of one position beside each other.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from chopjax.models.config import Layer, ModelConfig
from chopjax.models.positions import alibi_slopes


@dataclasses.dataclass(frozen=True)
class Scores:
    """score = cap·tanh(scale·q·k / cap) - slope·distance. Static: kernels skip what it spares.

    scale: None for 1 / √H. cap: None for scale·q·k itself (Gemma 2, arXiv 2408.00118, section 2).
    window: a token sees itself and the window - 1 positions before it; None: all before it.
    slopes: ALiBi (arXiv 2108.12409), one for each query head; None for none. No decoder has both
        them and a cap.
    """

    scale: float | None = None
    cap: float | None = None
    window: int | None = None
    slopes: tuple[float, ...] | None = None

    def scale_of(self, head_dim: int) -> float:
        return head_dim**-0.5 if self.scale is None else self.scale


PLAIN = Scores()


def scores_of(config: ModelConfig, layer: Layer) -> Scores:
    """Those of one layer."""
    slopes = alibi_slopes(config.num_heads) if config.positions == "alibi" else None
    return Scores(config.score_scale, config.score_cap, layer.window, slopes)


def all_scores(config: ModelConfig) -> tuple[Scores, ...]:
    """The different ones of a model's layers, in order of appearance."""
    # A model of no layers, as latency times it, has scores of no layer.
    return tuple(dict.fromkeys(scores_of(config, kind) for kind in config.kinds or (Layer(),)))


def shaped(products_BKXS: jax.Array, scores: Scores, distance_BQS: jax.Array | None) -> jax.Array:
    """scale·q·k → scores, before the mask.

    distance_BQS: positions from a query back to a key; needed where there are slopes.
    """
    if scores.cap is not None:
        products_BKXS = scores.cap * jnp.tanh(products_BKXS / scores.cap)
    if scores.slopes is not None:
        assert distance_BQS is not None
        K = products_BKXS.shape[1]
        slopes_KG = jnp.asarray(scores.slopes, products_BKXS.dtype).reshape(K, -1)
        slopes_KX1 = jnp.tile(slopes_KG, distance_BQS.shape[1])[:, :, None]
        distance_BXS = jnp.repeat(distance_BQS, slopes_KG.shape[1], axis=1)
        products_BKXS -= slopes_KX1 * distance_BXS[:, None].astype(products_BKXS.dtype)
    return products_BKXS


def d_products(products_BKXS: jax.Array, scores: Scores, d_scores_BKXS: jax.Array) -> jax.Array:
    """The gradient by the scores → that by scale·q·k, of which it needs the value."""
    if scores.cap is None:
        return d_scores_BKXS
    return d_scores_BKXS * (1 - jnp.square(jnp.tanh(products_BKXS / scores.cap)))
