"""The one parameter layout: which arrays a decoder has, what their axes are, where they start.

Parameters are a plain nested dict; a path such as `blocks/attention/query` names a leaf. Under
`blocks` every array carries the layer axis L first, nothing else does. No jax in this module:
inspecting and chopping a checkpoint need only the names and sizes.

Axes: V vocabulary, D model, E embedding table where narrower than D, P positions, L layers,
N query heads, K key/value heads, G = N/K, H head size, F feed-forward (of an expert), X experts.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

from chopjax.models.config import ModelConfig, Norm

Params = dict[str, Any]  # nested: str → Params or array


def sizes(config: ModelConfig) -> dict[str, int]:
    """Axis letter → size."""
    return {
        "V": config.vocab_size,
        "D": config.embed_dim,
        "E": config.table_dim,
        "P": config.max_positions + config.position_offset,
        "L": config.num_layers,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "G": config.num_heads // max(config.num_kv_heads, 1),
        "H": config.head_dim,
        "F": config.mlp_dim,
        "X": config.experts.count if config.experts else 1,
    }


class Parameter(NamedTuple):
    """One row of the layout. axes: such as "L D N H". initial: what training from scratch starts
    at; "normal" has the deviation decoder.INITIAL_STDDEV."""

    axes: str
    initial: Literal["normal", "ones", "zeros"] = "normal"


# The kernels of all experts of a layer, one after the other.
EXPERTS = {"gate": "L X D F", "up": "L X D F", "down": "L X F D"}


def table(config: ModelConfig) -> dict[str, Parameter]:
    """Path → row, for every parameter that a decoder of this configuration has, and no other."""
    width = "E" if config.embed_projection else "D"
    rows = {"embed/embedding": Parameter(f"V {width}")}
    if config.positions == "learned":
        rows["embed/positions"] = Parameter("P D")
    if config.embed_projection:
        rows["embed/project_in"] = Parameter("E D")
    if config.embed_norm:
        rows |= _norm("embed/norm", "D", config.norm)
    if config.norm_place != "after":
        rows |= _norm("blocks/attention_norm", "L D", config.norm)
    for name, dims in {"query": "L D N H", "key": "L D K H", "value": "L D K H"}.items():
        rows |= _kernel(f"blocks/attention/{name}", dims, 2, config.qkv_bias)
    rows |= _kernel("blocks/attention/output", "L N H D", 1, config.output_bias)
    if (qk := config.qk_norm) is not None:
        for name, heads in {"query": "N", "key": "K"}.items():
            dims = "L H" if qk.over == "head" else f"L {heads} H"
            rows |= _norm(f"blocks/attention/{name}_norm", dims, qk.norm)
    if config.norm_place in ("after", "both"):
        rows |= _norm("blocks/attention_output_norm", "L D", config.norm)
        rows |= _norm("blocks/mlp_output_norm", "L D", config.norm)
    if config.norm_place != "after" and config.parallel != "one_norm":
        rows |= _norm("blocks/mlp_norm", "L D", config.norm)
    if config.experts is not None:
        rows["blocks/mlp/router"] = Parameter("L D X")
        rows |= {f"blocks/mlp/{name}": Parameter(dims) for name, dims in EXPERTS.items()}
    else:
        for name in ("gate", "up") if config.gated_mlp else ("up",):
            rows |= _kernel(f"blocks/mlp/{name}", "L D F", 1, config.mlp_bias)
        rows |= _kernel("blocks/mlp/down", "L F D", 1, config.mlp_bias)
    if config.final_norm:
        rows |= _norm("final_norm", "D", config.norm)
    if config.embed_projection:
        rows["head/project_out"] = Parameter("D E")
    if not config.tie_embeddings:
        rows["head/kernel"] = Parameter(f"{width} V")
    if config.head_bias:
        rows["head/bias"] = Parameter("V", "zeros")
    return rows


def _kernel(path: str, dims: str, outputs: int, bias: bool) -> dict[str, Parameter]:
    """A block's kernel, whose last `outputs` axes are its product's, and its bias over those."""
    rows = {path: Parameter(dims)}
    if bias:
        rows[f"{path}_bias"] = Parameter(" ".join(["L", *dims.split()[-outputs:]]), "zeros")
    return rows


def _norm(path: str, dims: str, norm: Norm) -> dict[str, Parameter]:
    one: Literal["ones", "zeros"] = "zeros" if norm.offset == 1 else "ones"
    scale = {f"{path}/scale": Parameter(dims, one)} if norm.scale else {}
    bias = {f"{path}/bias": Parameter(dims, "zeros")} if norm.bias else {}
    return scale | bias


def axes(config: ModelConfig) -> dict[str, str]:
    """Path → axes."""
    return {path: row.axes for path, row in table(config).items()}


class KernelAxes(NamedTuple):
    """The axes of a kernel: those that it is one of many along, what it reads, what it makes."""

    leading: tuple[str, ...]  # L, and X where there are experts
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


# In the order of a block. A router is none of them: it is small, and decides more than it computes.
ATTENTION_KERNELS, MLP_KERNELS = ("query", "key", "value", "output"), ("gate", "up", "down")
KERNELS = dict.fromkeys(ATTENTION_KERNELS, "attention") | dict.fromkeys(MLP_KERNELS, "mlp")


def kernels(config: ModelConfig) -> dict[str, KernelAxes]:
    """Path → axes, of the blocks' kernels: the matrices in which nearly all of a decoder lies."""
    present = axes(config)
    found = {}
    for name, part in KERNELS.items():
        if (path := f"blocks/{part}/{name}") in present:
            letters = tuple(present[path].split())
            first = 2 if letters[1] == "X" else 1
            last = first + (2 if name == "output" else 1)
            found[path] = KernelAxes(letters[:first], letters[first:last], letters[last:])
    return found


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path → shape."""
    size = sizes(config)
    return {path: tuple(size[a] for a in dims.split()) for path, dims in axes(config).items()}


def active_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path → shape of what one token meets: of experts' kernels those that it is sent to."""
    found = shapes(config)
    if config.experts is not None:
        for path, dims in axes(config).items():
            if dims.startswith("L X"):
                layers, _, *kernel = found[path]
                found[path] = (layers, config.experts.per_token, *kernel)
    return found


def count(config: ModelConfig, active: bool = False) -> int:
    """Parameters in all; a tied head is counted once. active: those that one token meets, fewer
    where there are experts."""
    found = active_shapes(config) if active else shapes(config)
    return sum(math.prod(shape) for shape in found.values())


def count_per_layer(config: ModelConfig, active: bool = False) -> int:
    """Parameters of one block."""
    found = active_shapes(config) if active else shapes(config)
    blocks = [s for path, s in found.items() if path.startswith("blocks/")]
    return sum(math.prod(shape[1:]) for shape in blocks)
