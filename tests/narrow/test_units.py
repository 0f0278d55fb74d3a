"""The arithmetic of shares, and what is refused before anything is computed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import families
import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from chopjax.errors import UserError
from chopjax.models.families import FAMILIES, translate
from chopjax.narrow.units import (
    as_bits,
    make_plan,
    narrower,
    shares_that_work,
    strongest,
    units,
)


def raw_of(family: str, **options: Any) -> dict[str, Any]:
    config = transformers.AutoConfig.for_model(family, **(families.SIZES[family] | options))
    raw: dict[str, Any] = config.to_dict()
    return raw


def plan_of(raw: dict[str, Any], **shares: float) -> Any:
    family, config = translate(raw)
    return make_plan(family, raw, config, shares)


LLAMA, QWEN3 = translate(raw_of("llama"))[1], raw_of("qwen3")


@given(
    kv_heads=st.integers(1, 12),
    queries=st.integers(1, 5),
    mlp=st.integers(2, 300),
    share=st.floats(0.001, 0.999),
    data=st.data(),
)
def test_shares_give_whole_units(
    kv_heads: int, queries: int, mlp: int, share: float, data: st.DataObject
) -> None:
    family = FAMILIES["qwen3"]
    raw = QWEN3 | {"num_attention_heads": kv_heads * queries, "num_key_value_heads": kv_heads}
    raw |= {"intermediate_size": mlp}
    config = family.translate(raw)
    total, heads = units(config)["heads"], shares_that_work(family, raw, config, "heads")
    assert total == (queries if kv_heads == 1 else kv_heads)
    assert heads == [round(gone / total, 4) for gone in range(1, total)]
    asked = {"heads": data.draw(st.sampled_from(heads))} if heads else {}
    step = math.gcd(mlp, 16)
    if 0 < round((1 - share) * mlp / step) * step < mlp:
        asked["mlp"] = share
    if not asked:
        return
    plan = make_plan(family, raw, config, asked)
    assert plan.config == family.translate(plan.raw_config)
    assert plan.config.num_heads % plan.config.num_kv_heads == 0
    assert plan.config.head_dim == config.head_dim
    if "heads" in asked:
        assert plan.config.num_heads / config.num_heads == pytest.approx(
            1 - asked["heads"], abs=5e-5
        )
        assert plan.config.num_kv_heads == 1 or (
            plan.config.num_heads // plan.config.num_kv_heads == queries
        )
    if "mlp" in asked:
        assert abs(plan.config.mlp_dim - (1 - share) * mlp) <= step / 2 + 1e-6
        assert plan.config.mlp_dim % step == 0
    with pytest.raises(UserError, match=r"that work: |no share works"):
        make_plan(family, raw, config, {"heads": 0.31415})


@given(st.lists(st.sampled_from([0.0, 1.0, 2.5, 7.0]), min_size=1, max_size=20), st.data())
def test_the_strongest_stay_in_their_order(scores: list[float], data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, len(scores)))
    stayed = strongest(np.array(scores), kept)
    assert len(stayed) == kept
    assert (np.diff(stayed) > 0).all()
    gone = sorted(set(range(len(scores))) - set(stayed))
    assert all(scores[a] >= scores[b] for a in stayed for b in gone)
    assert all(scores[a] > scores[b] or b < a for a in stayed for b in gone)
    bits = f"{int(as_bits(stayed, len(scores)), 16):0{-(-len(scores) // 8) * 8}b}"
    assert [at for at, bit in enumerate(bits) if bit == "1"] == stayed.tolist()


def test_narrower_counts() -> None:
    assert units(LLAMA) == {"mlp": 56, "heads": 2, "embed": 32}
    assert narrower(LLAMA, {"heads": 1}).num_heads == 2
    shared = dataclasses.replace(LLAMA, num_kv_heads=1)
    made = narrower(shared, {"heads": 3, "mlp": 8})
    assert (made.num_heads, made.num_kv_heads, made.mlp_dim) == (3, 1, 8)


@pytest.mark.parametrize(
    ("family", "heads", "width"), [("llama", 4, 24), ("llama", 6, 24), ("llama", 5, 40)]
)
def test_the_width_is_one_that_the_heads_that_stay_divide(
    family: str, heads: int, width: int
) -> None:
    raw = raw_of(family, hidden_size=48, num_attention_heads=12, num_key_value_heads=12)
    plan = plan_of(raw, heads=round(1 - heads / 12, 4), embed=1 - width / 48)
    assert (plan.config.num_heads, plan.config.embed_dim) == (heads, width)


@pytest.mark.parametrize(
    ("family", "options", "shares", "said"),
    [
        ("llama", {}, {}, "nothing is asked for"),
        ("llama", {}, {"mlp": 1.0}, "--mlp 1.0: a share between 0 and 1"),
        ("llama", {}, {"heads": 0.0}, "--heads 0.0: a share between"),
        ("llama", {}, {"mlp": float("nan")}, "--mlp nan"),
        ("llama", {}, {"mlp": 0.01}, "56 hidden units .* in steps of 8; .* 0.1429 and 0.2857"),
        ("llama", {}, {"heads": 0.25}, "2 groups of 2 query heads.* of which 0.5 .* work: 0.5$"),
        (
            "llama",
            {"num_key_value_heads": 4},
            {"heads": 0.25},
            r"4 heads in a layer, .* divide hidden_size, 32\); .* work: 0.5 and 0.75",
        ),
        ("mistral", {"num_key_value_heads": 4}, {"heads": 0.3}, "work: 0.25 and 0.5"),
        ("mistral", {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8},
         {"heads": 0.5}, "no share works"),
        ("gpt2", {}, {"heads": 0.5}, "config.json of gpt2 has no key for the size of a head"),
        ("opt", {}, {"heads": 0.5}, "the model's width divided by the number of heads"),
        ("falcon", {}, {"heads": 0.25}, "config.json of falcon has no key"),
        ("gemma", {}, {"embed": 0.25}, "the embeddings' scale"),
        ("llama", {}, {"embed": 0.01}, "32 dimensions, .* in steps of 8"),
        ("bloom", {}, {"mlp": 0.5}, "no key for the feed-forward's width"),
        ("mixtral", {}, {"mlp": 0.5}, "4 experts in a layer"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_reason(
    family: str, options: dict[str, Any], shares: dict[str, float], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        plan_of(raw_of(family, **options), **shares)
