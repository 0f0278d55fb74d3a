"""How many units of a layer go, and what the narrower decoder is. No jax.

A unit of `mlp` is a hidden unit of the feed-forward. One of `heads` is a key/value head with the
query heads that read it; where all read the same one, a query head. One of `embed` is a dimension
of the residual stream. All layers lose equally many, of `embed` the same ones: config.json has one
width for them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from chopjax.errors import UserError
from chopjax.models.config import ModelConfig
from chopjax.models.families.table import Family

# Of `mlp` and `embed`, where the parent's width is one: int4 has a scale for 16 inputs or more. Of
# an `embed` that heads must divide such widths may be few, and matrix units want 8 at least.
MULTIPLE, DIVIDED_MULTIPLE = 16, 8
_DIGITS = 4  # to which a share of the heads must give a whole number

Counts = Mapping[str, int]  # kind → units of a layer


def units(config: ModelConfig) -> dict[str, int]:
    """How many a layer has."""
    one_for_all = config.num_kv_heads == 1
    return {
        "mlp": config.mlp_dim,
        "heads": config.num_heads if one_for_all else config.num_kv_heads,
        "embed": config.embed_dim,
    }


def narrower(config: ModelConfig, kept: Counts) -> ModelConfig:
    """The decoder of which each layer keeps so many units; of a kind that is missing, all."""
    each = dataclasses.replace(
        config,
        mlp_dim=kept.get("mlp", config.mlp_dim),
        embed_dim=kept.get("embed", config.embed_dim),
    )
    if "heads" not in kept:
        return each
    if config.num_kv_heads == 1:
        return dataclasses.replace(each, num_heads=kept["heads"])
    queries = config.num_heads // config.num_kv_heads
    return dataclasses.replace(each, num_heads=kept["heads"] * queries, num_kv_heads=kept["heads"])


@dataclasses.dataclass(frozen=True)
class Plan:
    """kept: units that stay in each layer, of the kinds that are narrowed."""

    kept: Counts
    config: ModelConfig
    raw_config: dict[str, Any]


def make_plan(
    family: Family, raw: Mapping[str, Any], config: ModelConfig, shares: Mapping[str, float]
) -> Plan:
    """shares: kind → share of its units that goes. raw, config: the parent's.

    Raises UserError where the family's config.json could not say it, or a share gives no whole
    number, with the shares that do.
    """
    if not shares:
        raise UserError("nothing is asked for: give --mlp, --heads or --embed SHARE")
    for kind, share in shares.items():
        if not 0 < share < 1:
            raise UserError(f"--{kind} {share}: a share between 0 and 1 is needed, such as 0.25")
        if reason := _why_not(kind, family, raw, config):
            raise UserError(f"--{kind}: {reason}")
    kept: dict[str, int] = {}
    for kind in sorted(shares, key=["heads", "mlp", "embed"].index):
        # Of a width that is to be another one, only the heads that stay know what divides it.
        choices = _choices(kind, family, narrower(config, kept), "embed" in shares)
        kept[kind] = _kept(kind, shares[kind], choices, config)
    said = _said(family, raw, config, kept)
    assert said is not None, "it can say each of them"
    return Plan({kind: kept[kind] for kind in shares}, narrower(config, kept), said)


def shares_that_work(
    family: Family, raw: Mapping[str, Any], config: ModelConfig, kind: str
) -> list[float]:
    """Of the units that go, ascending; none where there is no way to have fewer of them."""
    if _why_not(kind, family, raw, config):
        return []
    total = units(config)[kind]
    return [_rounded(kept, total) for kept in _choices(kind, family, config, False)]


def strongest(scores: np.ndarray, kept: int) -> np.ndarray:
    """The units with the highest scores, ascending; of equal scores the first go."""
    order = np.argsort(scores, kind="stable")
    return np.sort(order[len(order) - kept :])


def as_bits(stayed: np.ndarray, total: int) -> str:
    """Which of a layer's units stayed: a bit each, the first one highest, in hexadecimal."""
    bits = np.zeros(total, bool)
    bits[stayed] = True
    return np.packbits(bits).tobytes().hex()


def _why_not(kind: str, family: Family, raw: Mapping[str, Any], config: ModelConfig) -> str:
    """Why the family cannot have fewer of these units; empty where it can."""
    if kind == "mlp" and config.experts is not None:
        return (
            f"this {family.model_type} has {config.experts.count} experts in a layer, each with "
            "hidden units of its own that only some tokens meet"
        )
    if _said(family, raw, config, {kind: 1}) is not None:
        return ""
    missing = {
        "mlp": "the feed-forward's width, which follows from the model's",
        "heads": "the size of a head, which is the model's width divided by the number of heads",
        "embed": "what follows from the model's width, the size of a head or the embeddings' scale",
    }
    return f"config.json of {family.model_type} has no key for {missing[kind]}"


def _choices(kind: str, family: Family, config: ModelConfig, other_width: bool) -> list[int]:
    """The numbers of units that may stay, descending.

    config: with the heads that stay, where others go. other_width: whether `embed` goes, too.
    """
    total = units(config)[kind]
    if kind != "heads":
        step = math.gcd(total, MULTIPLE)
        if kind == "embed" and family.heads_divide_width:
            step = math.lcm(math.gcd(total, DIVIDED_MULTIPLE), config.num_heads)
        return list(range((total - 1) // step * step, 0, -step))
    width = config.embed_dim if family.heads_divide_width and not other_width else 0
    fewer = range(total - 1, 0, -1)
    return [kept for kept in fewer if width % narrower(config, {"heads": kept}).num_heads == 0]


def _kept(kind: str, share: float, choices: list[int], config: ModelConfig) -> int:
    """How many units stay: of heads as many as the share says, of others about as many."""
    total = units(config)[kind]
    if kind == "heads":
        kept = next((n for n in choices if _rounded(n, total) == round(share, _DIGITS)), 0)
    else:
        kept = min([*choices, total, 0], key=lambda n: abs(n - (1 - share) * total))
    if kept in choices:
        return kept
    rule = f" in steps of {choices[-1]}" if kind != "heads" and choices else ""
    if kind == "heads" and len(choices) < total - 1:
        rule = f" (transformers wants heads to divide hidden_size, {config.embed_dim})"
    raise UserError(
        f"--{kind} {share:g}: there are {total} {_names(kind, config)}, of which {share * total:g} "
        f"would go{rule}; {_that_work(share, [_rounded(n, total) for n in choices])}"
    )


def _names(kind: str, config: ModelConfig) -> str:
    """What the units are."""
    if kind != "heads":
        return {"mlp": "hidden units in a layer", "embed": "dimensions"}[kind]
    queries = config.num_heads // units(config)["heads"]
    if queries == 1:
        return "heads in a layer"
    return f"groups of {queries} query heads with their key and value in a layer"


def _that_work(share: float, others: list[float]) -> str:
    if not others:
        return "no share works"
    near = sorted(sorted(others, key=lambda other: abs(other - share))[:2])
    return f"the nearest shares that work: {' and '.join(map(str, near))}"


def _rounded(kept: int, total: int) -> float:
    """The share that goes."""
    return round((total - kept) / total, _DIGITS)


def _said(
    family: Family, raw: Mapping[str, Any], config: ModelConfig, kept: Counts
) -> dict[str, Any] | None:
    """config.json of the narrower decoder; None where it would mean another one."""
    wanted, said = narrower(config, kept), dict(raw)
    if "mlp" in kept and family.mlp_key is not None:
        said[family.mlp_key] = kept["mlp"]
    if "embed" in kept:
        said["hidden_size"] = wanted.embed_dim
    if "heads" in kept or "embed" in kept:  # as families have them that say the size of a head
        said["num_attention_heads"] = wanted.num_heads
        said["num_key_value_heads"] = wanted.num_kv_heads
        said["head_dim"] = wanted.head_dim
    try:
        return said if family.translate(said) == wanted else None
    except UserError:
        return None
