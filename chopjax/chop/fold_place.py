"""Where a repair goes into the weights of a decoder, or why nowhere. No jax.

A linear map of what the feed-forward adds is its down projection, multiplied. Where a norm stands
between that and the residual stream, only a factor for each channel passes: the norm's own scale.
One number on the whole stream goes into everything that writes to the stream, as long as everything
reads it through a norm.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from chopjax.errors import UserError
from chopjax.keep import Keep, ranges
from chopjax.models import parameters
from chopjax.models.config import ModelConfig
from chopjax.models.families.table import Family

KINDS = ("linear", "affine", "scalar")
BIAS_KEY = "mlp_bias"  # of config.json: gives every product of the feed-forward a bias


@dataclasses.dataclass(frozen=True)
class Gap:
    """Layers first..last went; before: the kept layer in front of them, None where there is none.
    All numbered as in the model that is chopped."""

    before: int | None
    first: int
    last: int

    @property
    def layers(self) -> str:
        return ranges(range(self.first, self.last + 1))


def gaps_of(keep: Keep, num_layers: int) -> tuple[Gap, ...]:
    """From the input upwards."""
    places = (-1, *keep, num_layers)
    return tuple(
        Gap(low if low >= 0 else None, low + 1, high - 1)
        for low, high in itertools.pairwise(places)
        if high > low + 1
    )


@dataclasses.dataclass(frozen=True)
class MapPlace:
    """Where a linear or affine map goes, of the layer before a gap.

    kernel, bias: paths of parameters.py; bias is None where there is none.
    diagonal: `kernel` is a norm's scale, and the map a factor for each channel.
    whole: what is mapped is the whole stream behind the norm, not what the layer adds to it.
    """

    kernel: str
    bias: str | None
    diagonal: bool
    whole: bool = False


@dataclasses.dataclass(frozen=True)
class ScalarPlace:
    """times, divided: paths outside the blocks; by_layer: those of every layer before the gap."""

    by_layer: tuple[str, ...]
    times: tuple[str, ...]
    divided: tuple[str, ...]


def map_place(config: ModelConfig, kind: str) -> MapPlace:
    """Raises UserError where the map has no place."""
    if config.norm_place == "before":
        place = MapPlace("blocks/mlp/down", "blocks/mlp/down_bias", False)
    else:
        whole = config.norm_place == "residual"
        name = "blocks/mlp_norm" if whole else "blocks/mlp_output_norm"
        place = MapPlace(f"{name}/scale", f"{name}/bias", True, whole)
    has = parameters.table(config)
    if place.kernel not in has:
        raise UserError(
            f"--repair {kind}: {config.family} has a norm without a scale behind the feed-forward, "
            "and no map passes through it"
        )
    if place.bias not in has:
        place = dataclasses.replace(place, bias=None)
    if kind == "affine" and place.bias is None:
        where = "norm behind the feed-forward" if place.diagonal else "down projection"
        raise UserError(
            f"--repair affine: the {where} of this {config.family} has no bias to put the "
            "constant part into; --repair linear does without"
        )
    return place


def with_bias(family: Family, raw: Mapping[str, Any], config: ModelConfig) -> ModelConfig | None:
    """The configuration of the same model with biases in its feed-forward, where config.json's
    `mlp_bias` says just that; None where the family has them already or has no such key."""
    if config.mlp_bias or config.norm_place != "before":
        return None
    wanted = dataclasses.replace(config, mlp_bias=True)
    try:
        said = family.translate({**raw, BIAS_KEY: True})
    except UserError:
        return None
    return wanted if dataclasses.replace(said, layers=config.layers) == wanted else None


def scalar_place(config: ModelConfig) -> ScalarPlace:
    """Raises UserError where the stream is read other than through a norm."""
    has = parameters.table(config)
    if config.norm_place not in ("before", "both"):
        raise UserError(
            f"--repair scalar: the layers of this {config.family} read the residual stream as it "
            "is, without a norm before them, so that its size cannot be changed"
        )
    if not config.final_norm:
        raise UserError(
            f"--repair scalar: this {config.family} has no norm before its head, which would read "
            "the changed stream"
        )
    writers = ["blocks/attention/output", "blocks/mlp/down"]
    names = [each for path in writers for each in (path, f"{path}_bias")]
    if config.norm_place == "both":
        writers = ["blocks/attention_output_norm", "blocks/mlp_output_norm"]
        names = [f"{path}/{each}" for path in writers for each in ("scale", "bias")]
        _needs(has, [f"{path}/scale" for path in writers], config)
    divided: tuple[str, ...] = ()
    if config.embed_norm:
        times: tuple[str, ...] = ("embed/norm/scale", "embed/norm/bias")
        _needs(has, times[:1], config)
    else:
        table = "embed/project_in" if config.embed_projection else "embed/embedding"
        times = (table, "embed/positions")
        if config.tie_embeddings and not config.embed_projection:
            divided = ("final_norm/scale", "final_norm/bias")  # so that the tied head is as it was
            _needs(has, divided[:1], config)
    present = tuple(tuple(p for p in paths if p in has) for paths in (names, times, divided))
    return ScalarPlace(*present)


def _needs(has: Mapping[str, Any], paths: Sequence[str], config: ModelConfig) -> None:
    if any(path not in has for path in paths):
        raise UserError(
            f"--repair scalar: a norm of this {config.family} would take the factor in, and has no "
            "scale"
        )


def check_gaps(kind: str, gaps: Sequence[Gap]) -> None:
    """Raises UserError where there is nothing to repair, or nothing that could be."""
    if not gaps:
        raise UserError(f"--repair {kind}: no layer is removed, so there is no gap to repair")
    if kind != "scalar" and gaps[0].before is None:
        raise UserError(
            f"--repair {kind}: layers {gaps[0].layers} have no kept layer before them whose "
            "feed-forward could take the map in; keep layer 0, or take --repair scalar, which "
            "goes into the embeddings"
        )
