import dataclasses
import inspect
import re
from typing import Literal

import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

from chopjax.checkpoint.published import CONFIGS
from chopjax.models import families, flops
from chopjax.models.config import ModelConfig
from chopjax.plan.chip_memory import Parts, activations, knobs
from chopjax.plan.collectives import Collectives
from chopjax.plan.roofline import estimate, executed_flops_per_token
from chopjax.plan.topology import GIB, parse
from chopjax.train.settings import ComputeSettings, DataSettings, OptimizerSettings, Settings

_, LLAMA = families.translate(CONFIGS["meta-llama/Llama-2-7b-hf"])
MESH = {"slice": 1, "data": 2, "fsdp": 8, "tensor": 1}
SETTINGS = Settings(
    data=DataSettings(batch_size=256, sequence_length=2048),
    compute=ComputeSettings(dtype="bfloat16", remat="none"),
)
A_TOKEN = flops.training_per_token(LLAMA, SETTINGS.data.sequence_length)


def executed_of(config: ModelConfig, settings: Settings) -> int:
    """Where all of the decoder is trained."""
    a_token = flops.training_per_token(config, settings.data.sequence_length)
    return executed_flops_per_token(config, settings, a_token)


def with_compute(**changes) -> Settings:
    return dataclasses.replace(SETTINGS, compute=dataclasses.replace(SETTINGS.compute, **changes))


def test_less_is_kept_with_more_recomputation_and_smaller_parts():
    amounts = [
        activations(LLAMA, with_compute(remat=remat, microbatches=parts), MESH)
        for remat, parts in (("none", 1), ("dots", 1), ("full", 1), ("full", 2), ("full", 16))
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
    assert "compute.remat=full" in found[0].flags[-1]
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


# ---- roofline ------------------------------------------------------------------------------------


def test_executed_flops():
    """Without attention: the products of the weights, and again those of the blocks."""
    settings = dataclasses.replace(SETTINGS, data=DataSettings(batch_size=1, sequence_length=128))
    nothing = dataclasses.replace(LLAMA.keep((0,)), num_heads=0, num_kv_heads=0)
    model = flops.training_per_token(nothing, 128)
    head = 2 * LLAMA.embed_dim * LLAMA.vocab_size

    def executed(remat: Literal["none", "dots", "full"]) -> int:
        compute = dataclasses.replace(settings.compute, remat=remat, attention="splash")
        return executed_of(nothing, dataclasses.replace(settings, compute=compute))

    assert executed("none") == executed("dots") == model
    assert executed("full") == model + model // 3 - head


@pytest.mark.parametrize(
    ("attention", "length", "remat", "products", "area"),
    [
        ("splash", 2048, "dots", 9, 0.625),  # 10 of 16 tiles of 512
        ("splash", 2048, "full", 11, 0.625),
        ("splash", 512, "none", 9, 1.0),  # one tile
        ("splash", 640, "none", 9, 0.6),  # 15 of 25 tiles of 128
        ("xla", 2048, "none", 6, 1.0),
        ("xla", 2048, "dots", 7, 1.0),
    ],
)
def test_executed_flops_of_attention(
    attention: str, length: int, remat: str, products: int, area: float
):
    settings = dataclasses.replace(
        with_compute(attention=attention, remat=remat),
        data=DataSettings(batch_size=256, sequence_length=length),
    )
    weights = executed_of(LLAMA, settings) - round(
        products * 2 * area * length * LLAMA.num_heads * LLAMA.head_dim * LLAMA.num_layers
    )
    head = 2 * LLAMA.embed_dim * LLAMA.vocab_size
    forward = 2 * flops.matmul_parameters(LLAMA)
    assert weights == 3 * forward + (forward - head if remat == "full" else 0)


def test_a_window_s_tiles_alone_are_worked_off():
    settings = dataclasses.replace(
        with_compute(attention="splash", remat="none"),
        data=DataSettings(batch_size=256, sequence_length=2048),
    )

    def attention(window: int | None) -> int:
        layers = tuple(dataclasses.replace(layer, window=window) for layer in LLAMA.layers)
        config = dataclasses.replace(LLAMA, layers=layers)
        return executed_of(config, settings) - 6 * flops.matmul_parameters(LLAMA)

    assert attention(512) / attention(None) == pytest.approx(7 / 10)  # rows of 1, 2, 2, 2 tiles
    assert attention(600) / attention(None) == pytest.approx(9 / 10)
    assert attention(1) / attention(None) == pytest.approx(4 / 10)
    assert attention(4096) == attention(None)


def test_splash_s_products_are_those_of_the_kernel():
    """Two forward, three and four in the passes for queries and for keys and values."""
    source = inspect.getsource(splash_attention_kernel)
    bodies = {
        name: source[source.index(f"def {name}(") :].split("\ndef ")[0]
        for name in (
            "flash_attention_kernel",
            "_flash_attention_dq_kernel",
            "_flash_attention_dkv_kernel",
        )
    }
    counts = [len(re.findall(r"lax\.dot(?:_general)?\(", body)) for body in bodies.values()]
    # The last has a fused product for queries as well, which the shipped block sizes leave out.
    assert counts == [2, 3, 4 + 1]


def test_compute_bound():
    topology = parse("v5p:4x4x4")
    roofline = estimate(
        LLAMA, SETTINGS, topology, flops.training_per_token(LLAMA, SETTINGS.data.sequence_length)
    )
    tokens = 256 * 2048
    assert roofline.step == pytest.approx(
        tokens * flops.training_per_token(LLAMA, 2048) / (64 * 459e12)
    )
    assert roofline.mfu == pytest.approx(1)
    splash = estimate(LLAMA, with_compute(attention="splash"), topology, A_TOKEN)
    assert 0.95 < splash.mfu < 1  # the diagonal's tiles, and the scores once more
    assert roofline.tokens_per_second == pytest.approx(tokens / roofline.step)
    assert roofline.hbm is None
    again = estimate(LLAMA, with_compute(remat="full"), topology, A_TOKEN)
    assert again.mfu == pytest.approx(0.755, abs=0.01)


def test_collectives_hide_or_add():
    topology = parse("v5p:4x4x4")
    torus = {"fsdp": frozenset({0, 1, 2})}
    gigabytes = 60 * 10**9  # 0.1 s over 6 links of 100 GB/s
    hidden = Collectives("all-gather", ("fsdp",), 1, gigabytes, gigabytes, gigabytes)
    exposed = dataclasses.replace(hidden, hidden=0)
    alone = estimate(LLAMA, SETTINGS, topology, A_TOKEN, hbm_bytes=0)
    behind = estimate(LLAMA, SETTINGS, topology, A_TOKEN, 0, [hidden], MESH, torus)
    after = estimate(LLAMA, SETTINGS, topology, A_TOKEN, 0, [exposed], MESH, torus)
    assert behind.hidden_collectives == pytest.approx(0.1)
    assert behind.step == alone.step
    assert after.step == pytest.approx(alone.step + 0.1)
    slow = estimate(LLAMA, SETTINGS, topology, A_TOKEN, hbm_bytes=int(2765e9 * 100))
    assert slow.step == pytest.approx(100)


def test_between_slices_the_network_counts():
    topology = parse("v5p:4x4x4", slices=2)
    shape = {"slice": 2, "data": 1, "fsdp": 64, "tensor": 1}
    row = Collectives("all-reduce", ("slice", "fsdp"), 1, 0, 64 * 10**9, 0)
    roofline = estimate(
        LLAMA, SETTINGS, topology, A_TOKEN, 0, [row], shape, {"fsdp": frozenset({0, 1, 2})}
    )
    assert roofline.exposed_collectives == pytest.approx(64 / 600 + 1 / 6.25)


def test_experts_are_about_what_the_compiler_lays_out():
    """7.1 GiB (libtpu 0.0.52) for a Qwen3-30B-A3B on 64 chips of v5p, 8,192 tokens on each."""
    sizes = {"num_hidden_layers": 48, "vocab_size": 151_936, "head_dim": 128}
    _, config = families.translate({"model_type": "qwen3_moe"} | sizes)
    settings = with_compute(remat="full", attention="splash")
    found = activations(config, settings, {"slice": 1, "data": 1, "fsdp": 64, "tensor": 1})
    assert found == pytest.approx(7.1 * GIB, rel=0.2)
