"""One chip's memory by part: exact where it can be, and what would make a large run fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import get_args

from chopjax.models.compute import Remat
from chopjax.models.config import ModelConfig
from chopjax.train.memory import DTYPE_BYTES
from chopjax.train.settings import Settings


@dataclasses.dataclass(frozen=True)
class Parts:
    """Bytes on one chip. The first five follow from shapes and shardings; `activations` are the
    compiler's temporaries less the gradients, or a rough estimate where nothing was compiled."""

    parameters: int  # that are trained
    frozen: int  # that are only read
    optimizer: int
    gradients: int
    batch: int
    activations: int
    padding_and_code: int
    estimated: bool

    @property
    def total(self) -> int:
        return (
            self.parameters + self.frozen + self.optimizer + self.gradients + self.batch
            + self.activations + self.padding_and_code
        )  # fmt: skip


def activations(config: ModelConfig, settings: Settings, mesh_shape: Mapping[str, int]) -> int:
    """A rough estimate in bytes: what the forward pass keeps, one block's backward pass at work,
    and the loss.

    A token's share of a block: with remat "full" its input; with "dots" the results of the matrix
    products too, with "dots_except_mlp" without those of the feed-forward; with "none" about twice
    that. At work: six of the feed-forward and eight of the model's width; with attention "xla" its
    scores and their gradients, which exist whole in float32 (and stay, with "none"). With experts a
    token's feed-forwards are several, each with its own copy of the token, and a block's kernels
    and their gradients are large. The loss holds one chunk of logits, and the head and its gradient
    in float32; under adapters, the head alone.
    """
    tensor, tokens = mesh_shape["tensor"], _tokens(settings, mesh_shape)
    copies = config.experts.per_token if config.experts else 1
    at_work = 8 * config.embed_dim + 6 * copies * config.mlp_dim // tensor
    kernels = 0
    if config.experts is not None:
        at_work += 4 * copies * config.embed_dim
        kernels = 2 * 3 * config.experts.count * config.embed_dim * config.mlp_dim // tensor
    width = DTYPE_BYTES[settings.compute.dtype]
    vocabulary = math.ceil(config.vocab_size / tensor)
    loss = 4 * vocabulary * settings.compute.loss_chunk
    if settings.adapter.rank:
        loss += width * vocabulary * config.table_dim
    else:
        loss += 4 * vocabulary * 2 * config.table_dim
    scores = 0
    if settings.compute.attention == "xla":
        whole = 2 + (config.num_layers if settings.compute.remat == "none" else 0)
        heads_here = math.ceil(config.num_heads / tensor)
        scores = 4 * whole * tokens * heads_here * settings.data.sequence_length
    blocks = kept(config, settings, mesh_shape) + width * (tokens * at_work + kernels)
    return blocks + scores + loss


def kept(config: ModelConfig, settings: Settings, mesh_shape: Mapping[str, int]) -> int:
    """Of that, what the forward pass keeps of the blocks; a guess with remat "none" alone."""
    tensor, copies = mesh_shape["tensor"], config.experts.per_token if config.experts else 1
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    mlp = copies * config.mlp_dim * (2 if config.gated_mlp else 1)
    mixed = 2 * config.embed_dim + heads // tensor
    products = mixed + mlp // tensor
    a_token = {
        "full": config.embed_dim,
        "dots_except_mlp": config.embed_dim + mixed,
        "dots": config.embed_dim + products,
        "none": config.embed_dim + 2 * products,
    }[settings.compute.remat]
    tokens = _tokens(settings, mesh_shape)
    return DTYPE_BYTES[settings.compute.dtype] * tokens * config.num_layers * a_token


def _tokens(settings: Settings, mesh_shape: Mapping[str, int]) -> int:
    """Of a microbatch, on one device."""
    shards = mesh_shape["slice"] * mesh_shape["data"] * mesh_shape["fsdp"]
    tokens = settings.data.batch_size * settings.data.sequence_length
    return tokens // (shards * settings.compute.microbatches)


def teaching(
    teacher: ModelConfig, layers: int, settings: Settings, mesh_shape: Mapping[str, int]
) -> int:
    """What a teacher adds to that: the states that it leaves for a student of so many layers, one
    block at work, its head and a chunk of its logits in float32."""
    tensor, tokens = mesh_shape["tensor"], _tokens(settings, mesh_shape)
    asked = settings.teacher
    states = layers * (bool(asked.hidden) + bool(asked.attention)) + bool(asked.mimic)
    width = DTYPE_BYTES[settings.compute.dtype] * teacher.embed_dim
    vocabulary = math.ceil(teacher.vocab_size / tensor)
    head = 4 * vocabulary * (teacher.table_dim + settings.compute.loss_chunk)
    return tokens * width * (states + 8) + (head if asked.logits else 0)


@dataclasses.dataclass(frozen=True)
class Knob:
    """Another choice of settings, and the total that a chip is expected to hold with it."""

    flags: tuple[str, ...]  # such as "--config.compute.microbatches=4"
    settings: Settings
    total: int


def knobs(
    parts: Parts,
    limit: int,
    config: ModelConfig,
    settings: Settings,
    mesh_shape: Mapping[str, int],
) -> list[Knob]:
    """What would make the step fit, by the estimate above, scaled to what was compiled."""
    now = activations(config, settings, mesh_shape)
    fitting = []
    for flags, changed, sharded in _changes(settings, mesh_shape):
        scale = activations(config, changed, sharded) / now
        state = parts.parameters + parts.gradients + parts.frozen
        state = state * mesh_shape["fsdp"] // sharded["fsdp"]
        moments = parts.optimizer * mesh_shape["fsdp"] // sharded["fsdp"]
        if changed.optimizer.momentum_dtype != settings.optimizer.momentum_dtype:
            moments -= parts.parameters // 2  # from four bytes a parameter to two
        total = state + moments + parts.batch + parts.padding_and_code
        total += round(parts.activations * scale)
        if total <= limit:
            fitting.append(Knob(tuple(f"--config.{flag}" for flag in flags), changed, total))
    return fitting


def _changes(
    settings: Settings, mesh_shape: Mapping[str, int]
) -> Iterator[tuple[list[str], Settings, Mapping[str, int]]]:
    """Those that change no result first; of microbatches, from few to many."""
    compute, shards = settings.compute, math.prod(mesh_shape[a] for a in ("slice", "data", "fsdp"))
    order: list[Remat] = list(get_args(Remat))
    for remat in order[order.index(compute.remat) + 1 :]:
        less = dataclasses.replace(compute, remat=remat)
        changed = dataclasses.replace(settings, compute=less)
        yield [f"compute.remat={remat}"], changed, mesh_shape
    parts = compute.microbatches * 2
    while settings.data.batch_size % (shards * parts) == 0:
        less = dataclasses.replace(compute, microbatches=parts, remat="full")
        flags = [f"compute.microbatches={parts}"]
        if compute.remat != "full":
            flags.append("compute.remat=full")
        yield flags, dataclasses.replace(settings, compute=less), mesh_shape
        parts *= 2
    if mesh_shape["data"] > 1:
        whole = mesh_shape["data"] * mesh_shape["fsdp"]
        mesh = dataclasses.replace(settings.mesh, data=1, fsdp=whole)
        changed = dataclasses.replace(settings, mesh=mesh)
        sharded = {**mesh_shape, "data": 1, "fsdp": whole}
        yield ["mesh.data=1", f"mesh.fsdp={whole}"], changed, sharded
    if settings.optimizer.momentum_dtype == "float32":
        half = dataclasses.replace(settings.optimizer, momentum_dtype="bfloat16")
        changed = dataclasses.replace(settings, optimizer=half)
        yield ["optimizer.momentum_dtype=bfloat16"], changed, mesh_shape
