"""How long a step must take at least, by the chip's limits; an estimate, with its assumptions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from chopjax.models import flops, parameters
from chopjax.models.attention import splash_block, splash_is_fused
from chopjax.models.config import ModelConfig
from chopjax.plan.collectives import Collectives
from chopjax.plan.gpu_kernels import BACKWARD, FORWARD
from chopjax.plan.gpus import Cluster
from chopjax.plan.products import SPLASH_PRODUCTS
from chopjax.plan.schedule import Work
from chopjax.plan.topology import AnyTopology
from chopjax.train.settings import Settings

ASSUMPTIONS = (
    "operations run one after the other, each as long as its matrix products or its bytes take",
    "matrix products run at the chip's bfloat16 peak, and no other arithmetic counts",
    "HBM and interconnect move data at their peak rates",
    "a collective uses the links along its mesh axes, both ways round where they form a ring",
    "copies and collectives that the compiler starts ahead hide behind the operations",
    "all other collectives add to the step",
    "between slices, a collective moves its bytes divided by the group's size within a slice",
    "the host and the input pipeline keep up; evaluation and checkpoints are not counted",
)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one step on every chip, and what follows from them."""

    compute: float  # all matrix products that are carried out
    hbm: float | None  # all bytes that are moved; this and the next three need a compiled program
    operations: float | None  # each as long as its products or its bytes, whichever is longer
    hidden_collectives: float | None
    exposed_collectives: float | None
    step: float  # as `estimate` has it
    mfu: float  # model FLOPs over peak FLOPs, at that step
    tokens_per_second: float


def executed_flops_per_token(config: ModelConfig, settings: Settings, a_token: int) -> int:
    """What the hardware works off, in training: the model's FLOPs and what is computed twice.

    a_token: the step's model FLOPs (Task.flops), which are not those of training all of the decoder
    where some of it is frozen.
    remat "full" computes every block's forward pass a second time, but for what no gradient asks
    for: the products that end it. "dots" repeats no weight's product, "dots_except_mlp" those that
    begin the feed-forward.
    settings.compute.attention is that of the accelerator: attention counts as it is computed there.
    """
    head = 2 * config.table_dim * config.vocab_size
    products = 2 * flops.matmul_parameters(config)
    again = 0
    if settings.compute.remat == "full":
        again = products - head - _last_products(config)
    elif settings.compute.remat == "dots_except_mlp":
        again = _products(config, "mlp/gate", "mlp/up")
    other = a_token - flops.training_per_token(config, settings.data.sequence_length)
    return 3 * products + again + other + _attention_flops(config, settings)


def _last_products(config: ModelConfig) -> int:
    """Of all blocks, a token: what a block adds to its input and hands on. A norm behind a product
    needs its result."""
    if config.norm_place in ("after", "both"):
        return 0
    if config.parallel == "no":
        return _products(config, "mlp/down")
    return _products(config, "mlp/down", "attention/output")


def _products(config: ModelConfig, *names: str) -> int:
    """Of all blocks, a token: with these kernels, those of them that there are."""
    shapes = parameters.active_shapes(config)
    return 2 * sum(math.prod(shapes.get(f"blocks/{name}", (0,))) for name in names)


def _attention_flops(config: ModelConfig, settings: Settings) -> int:
    """Of all blocks, forward and backward, a token.

    splash works off whole tiles, those that the diagonal or a window's edge crosses too, and
    computes the scores anew in each of its backward passes (SPLASH_PRODUCTS), of which short rows
    have one: it makes the queries' gradient on top, in one product. cudnn does so in its one, and
    all of its scores are taken to be visible ones. Plain attention
    computes all T x T scores: 2 products forward and 4 backward, and the scores anew where they
    were not kept.
    """
    length, remat = settings.data.sequence_length, settings.compute.remat
    windows = [min(layer.window or length, length) for layer in config.layers]
    if settings.compute.attention == "splash":
        areas = [tile_share(config, length)] * len(windows)
        number = sum(SPLASH_PRODUCTS.values())
        number -= SPLASH_PRODUCTS["dq"] - 1 if splash_is_fused(length) else 0
        number += SPLASH_PRODUCTS["fwd"] if remat == "full" else 0
    elif settings.compute.attention == "xla":
        areas, number = [1.0] * len(windows), 6 + {"none": 0, "full": 2}.get(remat, 1)
    else:
        areas = [(window - window**2 / (2 * length)) / length for window in windows]
        number = FORWARD + BACKWARD if settings.compute.attention == "cudnn" else 6
        number += FORWARD if remat == "full" else 0
    scores = config.num_heads * config.head_dim * length
    return round(2 * number * sum(areas) * scores)


def tile_share(config: ModelConfig, length: int) -> float:
    """The share of the T x T scores that splash's tiles cover, as the mean over layers."""
    block = splash_block(length)
    tiles = length // block
    covered = 0
    for layer in config.layers:
        back = -(-(min(layer.window or length, length) - 1) // block)
        covered += sum(min(row, back) + 1 for row in range(tiles))
    return covered / tiles**2 / len(config.layers)


def estimate(
    config: ModelConfig,
    settings: Settings,
    topology: AnyTopology,
    a_token: int,
    work: Work | None = None,
    collectives: Sequence[Collectives] = (),
    mesh_shape: Mapping[str, int] | None = None,
    torus: Mapping[str, frozenset[int]] | None = None,
) -> Roofline:
    """Of a compiled step, what its operations and its exposed collectives take together. All bytes
    that are moved, and all collectives, must find room in it, those that hide as well.

    a_token: as executed_flops_per_token has it. work: of the compiled step; without it the matrix
    products alone count. torus: mesh axis → the dimensions of the torus that it runs along.
    """
    chip = topology.chip
    tokens = settings.data.batch_size * settings.data.sequence_length
    hbm = operations = hidden = exposed = None
    if work is None:
        products = tokens * executed_flops_per_token(config, settings, a_token) / topology.chips
        compute = step = products / chip.flops
    else:
        compute, hbm = work.flops / chip.flops, work.hbm_bytes / chip.hbm_bandwidth
        operations = work.seconds
        hidden = exposed = 0.0
        for row in collectives:
            seconds = _seconds(row, row.wire, topology, mesh_shape or {}, torus or {})
            share = row.hidden / row.wire if row.wire else 0.0
            hidden += seconds * share
            exposed += seconds * (1 - share)
        step = max(max(operations, hidden) + exposed, hbm)
    mfu = tokens * a_token / (step * topology.chips * chip.flops)
    return Roofline(compute, hbm, operations, hidden, exposed, step, mfu, tokens / step)


def _seconds(
    row: Collectives,
    wire: int,
    topology: AnyTopology,
    mesh_shape: Mapping[str, int],
    torus: Mapping[str, frozenset[int]],
) -> float:
    if isinstance(topology, Cluster):
        return topology.seconds(wire, row.axes, mesh_shape)
    within = [axis for axis in row.axes if axis != "slice"]
    dimensions = frozenset().union(*(torus.get(axis, frozenset()) for axis in within))
    seconds = wire / topology.ring_bandwidth(dimensions) if within else 0.0
    if "slice" in row.axes:
        group = math.prod(mesh_shape[axis] for axis in within)
        seconds += wire / group / topology.chip.network_bandwidth
    return seconds


def torus_dimensions(mesh: Any) -> dict[str, frozenset[int]]:
    """Mesh axis → dimensions of the torus in which the devices along it differ."""
    result = {}
    for position, axis in enumerate(mesh.axis_names):
        line = mesh.devices[
            tuple(slice(None) if i == position else 0 for i in range(mesh.devices.ndim))
        ]
        places = [tuple(device.coords) for device in line]
        differ = {d for d in range(len(places[0])) if len({place[d] for place in places}) > 1}
        result[axis] = frozenset(differ)
    return result
