"""How long a step takes at least, by hand."""

import dataclasses
from collections.abc import Mapping, Sequence

import pytest

from chopjax.checkpoint.published import CONFIGS
from chopjax.models import families, flops
from chopjax.models.compute import Remat
from chopjax.models.config import ModelConfig
from chopjax.plan.collectives import Collectives
from chopjax.plan.roofline import Roofline, estimate, executed_flops_per_token, tile_share
from chopjax.plan.schedule import Work
from chopjax.plan.topology import parse
from chopjax.train.settings import ComputeSettings, DataSettings, Settings

_, LLAMA = families.translate(CONFIGS["meta-llama/Llama-2-7b-hf"])
MESH = {"slice": 1, "data": 2, "fsdp": 8, "tensor": 1}
SETTINGS = Settings(
    data=DataSettings(batch_size=256, sequence_length=2048),
    compute=ComputeSettings(dtype="bfloat16", remat="none"),
)
A_TOKEN = flops.training_per_token(LLAMA, SETTINGS.data.sequence_length)
NOTHING = Work(flops=0, hbm_bytes=0, seconds=1.0, unknown_kernels=[])


def executed_of(config: ModelConfig, settings: Settings) -> int:
    """Where all of the decoder is trained."""
    a_token = flops.training_per_token(config, settings.data.sequence_length)
    return executed_flops_per_token(config, settings, a_token)


def with_compute(**changes) -> Settings:
    return dataclasses.replace(SETTINGS, compute=dataclasses.replace(SETTINGS.compute, **changes))


def estimated(
    work: Work,
    rows: Sequence[Collectives] = (),
    torus: Mapping[str, frozenset[int]] | None = None,
) -> Roofline:
    return estimate(LLAMA, SETTINGS, parse("v5p:4x4x4"), A_TOKEN, work, rows, MESH, torus)


def test_executed_flops():
    """Without attention: the products of the weights, and again those of the blocks but the last,
    which no gradient asks for unless a norm stands behind it."""
    settings = dataclasses.replace(SETTINGS, data=DataSettings(batch_size=1, sequence_length=128))
    nothing = dataclasses.replace(LLAMA.keep((0,)), num_heads=0, num_kv_heads=0)
    model = flops.training_per_token(nothing, 128)
    head = 2 * LLAMA.embed_dim * LLAMA.vocab_size

    def executed(remat: Remat, **changes) -> int:
        compute = dataclasses.replace(settings.compute, remat=remat, attention="splash")
        config = dataclasses.replace(nothing, **changes)
        return executed_of(config, dataclasses.replace(settings, compute=compute))

    assert executed("none") == executed("dots") == model
    gate_and_up = 2 * 2 * LLAMA.mlp_dim * LLAMA.embed_dim
    assert executed("dots_except_mlp") == model + gate_and_up
    assert executed("full", norm_place="both") == model + model // 3 - head
    assert executed("full") == model + model // 3 - head - 2 * LLAMA.mlp_dim * LLAMA.embed_dim


@pytest.mark.parametrize(
    ("attention", "length", "remat", "products", "area"),
    [
        ("splash", 2048, "dots", 7, 0.625),  # 10 of 16 tiles of 512
        ("splash", 2048, "full", 9, 0.625),
        ("splash", 512, "none", 7, 1.0),  # one tile
        ("splash", 640, "none", 7, 0.6),  # 15 of 25 tiles of 128
        ("splash", 8192, "none", 9, 17 / 32),  # the queries' gradient in a kernel of its own
        ("xla", 2048, "none", 6, 1.0),
        ("xla", 2048, "dots", 7, 1.0),
        ("xla", 2048, "dots_except_mlp", 7, 1.0),
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
    down = 2 * LLAMA.num_layers * LLAMA.mlp_dim * LLAMA.embed_dim
    again = {"full": forward - head - down, "dots_except_mlp": 2 * down}.get(remat, 0)
    assert weights == 3 * forward + again


def test_a_window_s_tiles_alone_are_worked_off():
    def share(*windows: int | None) -> float:
        layers = tuple(dataclasses.replace(LLAMA.layers[0], window=window) for window in windows)
        return tile_share(dataclasses.replace(LLAMA, layers=layers), 2048)

    assert share(None) == share(4096) == 10 / 16
    assert share(512) == 7 / 16  # rows of 1, 2, 2, 2 tiles
    assert share(600) == 9 / 16
    assert share(1) == 4 / 16
    assert share(512, None, None, None) == pytest.approx((7 + 3 * 10) / 64)


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
    assert roofline.operations is None
    again = estimate(LLAMA, with_compute(remat="full"), topology, A_TOKEN)
    forward = A_TOKEN / 3
    head = 2 * LLAMA.embed_dim * LLAMA.vocab_size
    down = 2 * LLAMA.num_layers * LLAMA.mlp_dim * LLAMA.embed_dim
    assert again.mfu == pytest.approx(3 * forward / (4 * forward - head - down))


def test_collectives_hide_or_add():
    torus = {"fsdp": frozenset({0, 1, 2})}
    gigabytes = 60 * 10**9  # 0.1 s over 6 links of 100 GB/s
    hidden = Collectives("all-gather", ("fsdp",), 1, gigabytes, gigabytes, gigabytes)
    exposed = dataclasses.replace(hidden, hidden=0)

    def step(seconds: float, *rows: Collectives) -> float:
        return estimated(Work(0, 0, seconds, []), rows, torus).step

    assert estimated(Work(0, 0, 1, []), [hidden], torus).hidden_collectives == pytest.approx(0.1)
    assert step(3) == step(3, hidden) == 3
    assert step(3, exposed, hidden) == pytest.approx(3.1)
    # Behind too little.
    assert step(0.04, hidden) == pytest.approx(0.1)
    assert step(0.04, exposed, hidden) == pytest.approx(0.2)


def test_a_step_is_its_operations_and_not_less_than_all_bytes():
    """Those of 5 s of products and of 3 s of bytes, of which 1 s hides."""
    whole = Work(int(5 * 459e12), int(3 * 2765e9), 7.0, [])
    roofline = estimated(whole)
    assert roofline.compute == pytest.approx(5)
    assert roofline.hbm == pytest.approx(3)
    assert roofline.operations == roofline.step == 7
    assert roofline.mfu == pytest.approx(256 * 2048 * A_TOKEN / (7 * 64 * 459e12))
    ahead = dataclasses.replace(whole, hbm_bytes=int(8 * 2765e9))
    assert estimated(ahead).step == pytest.approx(8)


def test_between_slices_the_network_counts():
    topology = parse("v5p:4x4x4", slices=2)
    shape = {"slice": 2, "data": 1, "fsdp": 64, "tensor": 1}
    row = Collectives("all-reduce", ("slice", "fsdp"), 1, 0, 64 * 10**9, 0)
    roofline = estimate(
        LLAMA, SETTINGS, topology, A_TOKEN, NOTHING, [row], shape, {"fsdp": frozenset({0, 1, 2})}
    )
    assert roofline.exposed_collectives == pytest.approx(64 / 600 + 1 / 6.25)
