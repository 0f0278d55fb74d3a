"""What a config.json says about rotary embeddings, in all of its spellings."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from chopjax.errors import cut
from chopjax.models.config import Rope
from chopjax.models.families.options import MAX_NUMBER, SMALL, Options, shown

# transformers' rope_type → Rope.kind. "dynamic" departs from "default" beyond
# max_position_embeddings, which chopjax never goes.
KINDS = {
    "default": "default",
    "dynamic": "default",
    "linear": "linear",
    "llama3": "llama3",
    "yarn": "yarn",
    "longrope": "longrope",
}
_KEYS = re.findall(
    r"\w+",
    "factor original_max_position_embeddings low_freq_factor high_freq_factor beta_fast beta_slow "
    "attention_factor mscale mscale_all_dim truncate short_factor long_factor "
    "attn_factor",  # of no kind: transformers warns and passes it over
)


def rope(
    options: Options,
    max_positions: int,
    head_dim: int,
    theta: float = 10_000.0,
    fraction: float | None = None,
    interleaved: bool = False,
    kinds: Mapping[str, str] = KINDS,
    theta_key: str = "rope_theta",
    fraction_key: str = "partial_rotary_factor",
    original: int | None = None,
) -> Rope:
    """Both spellings: rope_parameters (newer), rope_theta with rope_scaling (older).

    theta, fraction, original: what a missing key means; defaults are those of transformers'
    modeling_rope_utils. fraction None: the family turns whole heads. original: of
    original_max_position_embeddings outside rope_parameters, where the family has it.
    """
    theta = options.number(theta_key, theta, above=SMALL)
    raw = options.get("rope_scaling") or options.get("rope_parameters") or {}
    options.seen |= {"rope_scaling", "rope_parameters"}
    if not isinstance(raw, dict):
        options.problems.append(f"{_spelling(options)} is {shown(raw)}; an object is needed")
        return Rope()
    share = _share(options, raw, fraction, fraction_key)
    dims = int(head_dim * share)
    if dims < 2 or dims % 2 or dims > head_dim:
        options.problems.append(
            f"head_dim {head_dim}: RoPE turns pairs of dimensions, and {dims} of them are to turn"
        )
        dims = head_dim
    base = Rope(dims=dims if dims != head_dim else None, interleaved=interleaved)
    return read(options, raw, theta, max_positions, base, kinds, dims // 2, original)


def by_kind(
    options: Options, max_positions: int, head_dim: int, far: float, near: float
) -> tuple[Rope, Rope]:
    """The ropes of full layers and of those with a window (Gemma 3, OLMo 3): rope_parameters with
    an object for each, or rope_scaling, which is that of full layers.

    far, near: theta where the objects do not say it.
    """
    nested, scaling = options.get("rope_parameters"), options.get("rope_scaling")
    options.seen |= {"rope_scaling", "rope_parameters"}
    names = ("full_attention", "sliding_attention")
    if nested is not None and not (isinstance(nested, dict) and set(nested) <= set(names)):
        options.problems.append(
            f"rope_parameters: only objects under {' and '.join(names)} are read by transformers"
        )
        nested = None
    objects = [dict((nested or {}).get(name) or {}) for name in names]
    if isinstance(scaling, dict):
        if "rope_type" not in scaling and "type" in scaling:
            options.problems.append("rope_scaling: transformers ignores type; say rope_type")
        objects[0] |= scaling
    elif scaling is not None:
        options.problems.append(f"rope_scaling is {shown(scaling)}; an object is needed")
    if any(each.get("truncate") is False for each in objects):
        options.problems.append("rope_parameters: transformers ignores truncate here")
    full, sliding = (
        read(options, raw, theta, max_positions, Rope(), pairs=head_dim // 2)
        for raw, theta in zip(objects, (far, near), strict=True)
    )
    return full, sliding


def read(
    options: Options,
    raw: Mapping[str, Any],
    theta: float,
    max_positions: int,
    base: Rope,
    kinds: Mapping[str, str] = KINDS,
    pairs: int = 0,
    original: int | None = None,
) -> Rope:
    """One object with a rope_type; problems go to `options`. base: which dimensions turn, in
    `pairs` pairs. The rest is as in `rope`."""
    inner = _inner(raw)
    name = inner.get("rope_type", inner.get("type", "default"))
    inner.seen |= {"type", "partial_rotary_factor"}
    theta = inner.number("rope_theta", theta, above=SMALL)
    kind = kinds.get(name) if isinstance(name, str) else None
    fields: dict[str, Any] = {"kind": kind, "theta": theta}
    if kind is None:
        inner.problems.append(f"rope_type {shown(name)} is not supported")
        inner.seen |= set(raw)
        fields["kind"] = "default"
    elif kind in ("linear", "llama3", "yarn"):
        if "factor" not in inner.raw:
            inner.problems.append(f"rope_type {name!r} needs a factor")
        fields["factor"] = inner.number("factor", 1.0, above=SMALL)
    if kind in ("llama3", "yarn", "longrope"):
        # transformers gives the key outside rope_parameters the last word.
        inside = inner.size("original_max_position_embeddings", max_positions)
        outside = options.size("original_max_position_embeddings", original or inside)
        fields["original_max_positions"] = outside
    if kind == "llama3":
        fields["low_freq_factor"] = inner.number("low_freq_factor", 1.0, above=SMALL)
        low = fields["low_freq_factor"]
        fields["high_freq_factor"] = inner.number("high_freq_factor", 4.0, above=low)
    if kind == "yarn":
        # transformers takes 0 as not given.
        for key, default in (("beta_fast", 32.0), ("beta_slow", 1.0)):
            fields[key] = inner.number(key, default) or default
            if fields[key] < SMALL:
                inner.problems.append(f"{key} is {fields[key]:g}; a positive number is needed")
        fields["truncate"] = inner.flag("truncate", True)
        fields["attention_factor"] = _yarn_attention_factor(inner, fields["factor"])
        if theta == 1:
            inner.problems.append("rope_theta of 1 has no dimensions to tell apart")
    if kind == "longrope":
        length = fields["original_max_positions"]
        fields["stretch"] = _stretch(inner, pairs)
        fields["attention_factor"] = _longrope_attention_factor(inner, max_positions, length)
    # Keys of other kinds are inert here, as they are in transformers, but must be rope's own.
    inner.seen |= {key for key in _KEYS if key in raw}
    unknown = [key for key in inner.raw if key not in inner.seen]
    inner.problems += [f"{cut(key, 80)} is not an option that chopjax knows" for key in unknown]
    options.problems += [f"{_spelling(options)}: {problem}" for problem in inner.problems]
    return dataclasses.replace(base, **fields)


def _share(
    options: Options, raw: Mapping[str, Any], fraction: float | None, fraction_key: str
) -> float:
    """Which part of a head turns."""
    inner = _inner(raw)
    if fraction is None:  # the key, where a file has it, must say what is the case
        given = [inner.raw.get("partial_rotary_factor"), options.raw.get(fraction_key)]
        options.seen |= {fraction_key} & set(options.raw)
        if any(value not in (None, 1) for value in given):
            options.problems.append("partial_rotary_factor other than 1 is not supported")
        return 1.0
    if fraction_key in options.raw and options.raw[fraction_key] is None:
        options.problems.append(f"{fraction_key} is null; a number is needed")
    outside = options.number(fraction_key, fraction, above=0)
    share = inner.number("partial_rotary_factor", outside, above=0)
    options.problems += [f"{_spelling(options)}: {problem}" for problem in inner.problems]
    return share


def _spelling(options: Options) -> str:
    """The key of this config.json that says it."""
    return "rope_scaling" if options.raw.get("rope_scaling") else "rope_parameters"


def _inner(raw: Mapping[str, Any]) -> Options:
    return Options({key: value for key, value in raw.items() if value is not None})


def _stretch(inner: Options, pairs: int) -> tuple[float, ...]:
    """LongRoPE's factors for texts within the original context; those for longer texts change every
    token's state by what follows it, so chopjax never goes there."""
    factors = inner.get("short_factor")
    numbers = [
        float(factor)
        for factor in (factors if isinstance(factors, list) else [])
        if isinstance(factor, int | float) and SMALL < factor < MAX_NUMBER
    ]
    if len(numbers) == pairs == len(factors or []):
        return tuple(numbers)
    inner.problems.append(f"short_factor must be a list of {pairs} positive numbers")
    return (1.0,) * pairs


def _longrope_attention_factor(inner: Options, max_positions: int, original: int) -> float:
    """As transformers infers it from how far the context was extended."""
    if inner.get("attention_factor") is not None:
        return inner.number("attention_factor", 1.0)
    factor = inner.number("factor", max_positions / original, above=SMALL)
    if factor <= 1:
        return 1.0
    if original == 1:
        inner.problems.append("original_max_position_embeddings of 1 divides by zero")
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original))


def _yarn_attention_factor(inner: Options, factor: float) -> float:
    """YaRN's temperature (arXiv 2309.00071, section 3.4), as transformers infers it."""
    mscale, mscale_all_dim = inner.number("mscale", 0.0), inner.number("mscale_all_dim", 0.0)
    if inner.get("attention_factor") is not None:
        return inner.number("attention_factor", 1.0)

    def scale(by: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0

    if not (mscale and mscale_all_dim):
        return scale()
    below = scale(mscale_all_dim)
    if abs(below) < SMALL:
        inner.problems.append(f"mscale_all_dim of {mscale_all_dim:g} divides by zero")
        return 1.0
    return scale(mscale) / below
