import dataclasses

import pytest

from chopjax.checkpoint.published import CONFIGS
from chopjax.models import families
from chopjax.plan.chip_memory import Parts, activations, knobs
from chopjax.plan.topology import GIB
from chopjax.train.settings import ComputeSettings, DataSettings, OptimizerSettings, Settings

_, LLAMA = families.translate(CONFIGS["meta-llama/Llama-2-7b-hf"])
MESH = {"slice": 1, "data": 2, "fsdp": 8, "tensor": 1}
SETTINGS = Settings(
    data=DataSettings(batch_size=256, sequence_length=2048),
    compute=ComputeSettings(dtype="bfloat16", remat="none"),
)


def with_compute(**changes) -> Settings:
    return dataclasses.replace(SETTINGS, compute=dataclasses.replace(SETTINGS.compute, **changes))


def test_less_is_kept_with_more_recomputation_and_smaller_parts():
    amounts = [
        activations(LLAMA, with_compute(remat=remat, microbatches=parts), MESH)
        for remat, parts in (
            ("none", 1),
            ("dots", 1),
            ("dots_except_mlp", 1),
            ("full", 1),
            ("full", 2),
            ("full", 16),
        )
    ]
    assert amounts == sorted(amounts, reverse=True)
    assert activations(LLAMA, SETTINGS, MESH | {"tensor": 4}) < amounts[0]


def test_full_recomputation_keeps_every_block_s_input():
    settings = with_compute(remat="full")
    tokens = 256 * 2048 // 16
    more = LLAMA.keep([0, *range(LLAMA.num_layers)])
    difference = activations(more, settings, MESH) - activations(LLAMA, settings, MESH)
    assert difference == tokens * LLAMA.embed_dim * 2


def test_knobs_are_only_those_that_fit():
    parts = Parts(GIB, 0, GIB, GIB, 0, activations(LLAMA, SETTINGS, MESH), 0, True)
    found = knobs(parts, 20 * GIB, LLAMA, SETTINGS, MESH)
    assert "compute.remat=full" in found[0].flags[-1]  # with less, 20 GiB are too few
    assert all(knob.total <= 20 * GIB for knob in found)
    assert found[0].settings.compute.remat == "full"
    assert knobs(parts, GIB // 2, LLAMA, SETTINGS, MESH) == []


def test_knobs_for_the_state_itself():
    """Parameters and moments too large: shard them further, or halve the momentum."""
    parts = Parts(4 * GIB, 0, 4 * GIB, 4 * GIB, 0, GIB // 8, 0, True)
    lion = dataclasses.replace(SETTINGS, optimizer=OptimizerSettings(name="lion"))
    found = {knob.flags: knob for knob in knobs(parts, 11 * GIB, LLAMA, lion, MESH)}
    sharded = found["--config.mesh.data=1", "--config.mesh.fsdp=16"]
    assert sharded.total / GIB == pytest.approx(6.1, abs=0.1)
    assert (sharded.settings.mesh.data, sharded.settings.mesh.fsdp) == (1, 16)
    halved = found["--config.optimizer.momentum_dtype=bfloat16",]
    assert halved.total / GIB == pytest.approx(10.1, abs=0.1)


def test_experts_are_about_what_the_compiler_lays_out():
    """7.1 GiB (libtpu 0.0.52) for a Qwen3-30B-A3B on 64 chips of v5p, 8,192 tokens on each."""
    sizes = {"num_hidden_layers": 48, "vocab_size": 151_936, "head_dim": 128}
    _, config = families.translate({"model_type": "qwen3_moe"} | sizes)
    settings = with_compute(remat="full", attention="splash")
    found = activations(config, settings, {"slice": 1, "data": 1, "fsdp": 64, "tensor": 1})
    assert found == pytest.approx(7.1 * GIB, rel=0.2)
