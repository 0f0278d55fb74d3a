"""Which matrices of a decoder have a low-rank adapter, and of what size. No jax."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from chopjax.errors import UserError, did_you_mean
from chopjax.models import parameters
from chopjax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class AdapterSettings:
    """LoRA (arXiv 2106.09685), and QLoRA (2305.14314) where the base is quantized: the model's own
    weights stay as they are, and only what is added to some of its matrices is trained. Adapters
    are float32; compute.param_dtype is that of the weights that are not quantized."""

    rank: int = 0  # of what is added; 0: no adapters, all weights are trained
    alpha: float = 0.0  # what is added is scaled by alpha / rank; 0: by 1
    dropout: float = 0.0  # share of an adapter's inputs that a training step leaves out
    # matrices that have one: mlp, attention, all, or names out of query, key, value, output, gate,
    # up, down, separated by commas
    targets: str = "mlp"
    base: Literal["float", "nf4", "int8"] = "float"  # how the blocks' own matrices are held


GROUPS = ("mlp", "attention", "all")


def target_paths(config: ModelConfig, settings: AdapterSettings) -> tuple[str, ...]:
    """The kernels that have an adapter. Raises UserError where a target is not one of the model's,
    or is one of many experts."""
    present = parameters.kernels(config)
    asked = [part.strip() for part in settings.targets.split(",") if part.strip()]
    known = (*parameters.KERNELS, *GROUPS)
    names: set[str] = set()
    for target in asked:
        if target not in known:
            raise UserError(
                f"adapter.targets: {target!r} is not one of {', '.join(known)}"
                f"{did_you_mean(target, known)}"
            )
        names |= {n for n, part in parameters.KERNELS.items() if target in (n, part, "all")}
    chosen = tuple(path for path in present if path.rpartition("/")[2] in names)
    lacking = [t for t in asked if t not in GROUPS and not any(p.endswith(f"/{t}") for p in chosen)]
    if lacking or not chosen:
        raise UserError(
            f"adapter.targets: this model has no matrix {', '.join(lacking) or '(none is named)'}; "
            f"it has {', '.join(path.rpartition('/')[2] for path in present)}"
        )
    if experts := [path for path in chosen if "X" in present[path].leading]:
        raise UserError(
            f"adapter.targets: {', '.join(experts)} are the matrices of {config.family}'s experts, "
            "which take no adapters; use adapter.targets=attention"
        )
    return chosen


def scale_of(settings: AdapterSettings) -> float:
    """Of what is added: alpha / rank."""
    return (settings.alpha or settings.rank) / settings.rank


def shapes(config: ModelConfig, settings: AdapterSettings) -> dict[str, tuple[int, ...]]:
    """ "PATH/a" and "PATH/b" → shape."""
    size = parameters.sizes(config) | {"R": settings.rank}
    return {
        path: tuple(size[a] for a in dims.split()) for path, dims in axes(config, settings).items()
    }


def count(config: ModelConfig, settings: AdapterSettings) -> int:
    """Numbers in all adapters."""
    return sum(map(math.prod, shapes(config, settings).values()))


def adapted(config: ModelConfig, settings: AdapterSettings) -> int:
    """Numbers in the matrices that have one."""
    size = parameters.shapes(config)
    return sum(math.prod(size[path]) for path in target_paths(config, settings))


def axes(config: ModelConfig, settings: AdapterSettings) -> dict[str, str]:
    """ "PATH/a" and "PATH/b" → axes; R is the rank."""
    present = parameters.kernels(config)
    found = {}
    for path in target_paths(config, settings):
        leading, inputs, outputs = present[path]
        found[f"{path}/a"] = " ".join((*leading, *inputs, "R"))
        found[f"{path}/b"] = " ".join((*leading, "R", *outputs))
    return found
