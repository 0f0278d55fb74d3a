"""FLOPs against what XLA counts, and against the formulas written out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from chopjax.models import adapter_settings, decoder, flops, parameters
from chopjax.models.adapter_settings import AdapterSettings
from chopjax.models.compute import Compute
from chopjax.models.config import Layer, ModelConfig, Norm, Rope
from chopjax.models.families import translate
from chopjax.models.flops import conventions
from chopjax.models.head import head_of, logits

LLAMA_2_7B = ModelConfig(
    family="llama",
    vocab_size=32_000,
    embed_dim=4096,
    layers=(Layer(rope=Rope()),) * 32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    mlp_dim=11_008,
    max_positions=4096,
    norm=Norm("rms", 1e-5),
    activation="silu",
    tie_embeddings=False,
    gated_mlp=True,
)


def test_llama_2_7b_by_hand() -> None:
    layer = 4 * 4096**2 + 3 * 4096 * 11_008
    matrices = 32 * layer + 32_000 * 4096
    causal, palm = conventions(LLAMA_2_7B, 4096)
    assert palm.training == 6 * matrices + 12 * 32 * 32 * 128 * 4096
    assert causal.training == 6 * matrices + 6 * 32 * 32 * 128 * 4096
    assert palm.forward * 3 == palm.training
    assert causal.training == flops.training_per_token(LLAMA_2_7B, 4096)
    assert palm.training == pytest.approx(46.1e9, rel=2e-3)  # 6.6B parameters, T = 4096


def test_mixtral_8x7b_by_hand() -> None:
    """46.7B parameters, 12.9B of them active (arXiv 2401.04088, section 2)."""
    _, config = translate({"model_type": "mixtral"})
    attention, expert = 2 * 4096**2 + 2 * 4096 * 1024, 3 * 4096 * 14_336
    matrices = 32 * (attention + 4096 * 8 + 2 * expert) + 32_000 * 4096
    assert flops.matmul_parameters(config) == matrices
    assert parameters.count(config) == pytest.approx(46.7e9, rel=1e-3)
    assert parameters.count(config, active=True) == pytest.approx(12.9e9, rel=2e-3)


def test_xla_counts_the_same_for_a_forward_pass() -> None:
    """The formulas leave out norms, softmax and rotations: a few percent at this size."""
    config = ModelConfig(
        family="llama",
        vocab_size=512,
        embed_dim=256,
        layers=(Layer(rope=Rope()),) * 1,  # the scan's body is counted once whatever the depth
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        mlp_dim=1024,
        max_positions=512,
        norm=Norm("rms", 1e-5),
        activation="silu",
        tie_embeddings=True,
        gated_mlp=True,
    )
    length = 256

    def forward(params: dict, tokens_BT: jax.Array) -> jax.Array:
        hidden = decoder.hidden_states(params, config, Compute(attention="xla"), tokens_BT)
        return logits(head_of(params, config), hidden)

    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    compiled = jax.jit(forward).lower(decoder.abstract(config), tokens).compile()
    costs = compiled.cost_analysis()
    assert costs is not None
    counted = costs["flops"] / length
    _, palm = conventions(config, length)  # XLA computes all T x T scores
    assert counted == pytest.approx(palm.forward, rel=0.08)


def test_adapters_save_what_torch_counts_with_peft() -> None:
    """Of a layer that has others below it: what a training step costs less than one of all weights.
    Attention costs both the same, so that nothing but products with weights is left."""
    import peft
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    raw: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 80,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    settings, length = AdapterSettings(rank=3), 16

    def torch_saves(layers: int) -> int:
        counts = []
        for adapted in (False, True):
            model: Any = LlamaForCausalLM(LlamaConfig(**raw, num_hidden_layers=layers))
            if adapted:
                targets = ["gate_proj", "up_proj", "down_proj"]
                model = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=targets))
            ids = torch.arange(length)[None]
            with FlopCounterMode(display=False) as counter:
                model(input_ids=ids, labels=ids).loss.backward()
            counts.append(counter.get_total_flops())
        return counts[0] - counts[1]

    def ours_saves(layers: int) -> int:
        _, config = translate(raw | {"num_hidden_layers": layers})
        added = adapter_settings.count(config, settings)
        full = flops.training_per_token(config, length)
        return length * (full - flops.adapters_per_token(config, length, added))

    assert ours_saves(3) - ours_saves(2) == torch_saves(3) - torch_saves(2)
