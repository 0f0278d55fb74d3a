"""How quantized matrices lie in a checkpoint that transformers and vLLM load. No jax.

The format of the compressed-tensors library (0.20). Of a module MODULE with the weight [O, I]:

    int4, int8   `pack-quantized`
                 MODULE.weight_packed  int32 [O, ⌈I·bits/32⌉]: codes, made positive by adding half
                                       of their range, the first input in the lowest bits
                 MODULE.weight_scale   [O, S], of the type that the weight had
                 MODULE.weight_shape   int64 [2]
    fp8          `float-quantized`
                 MODULE.weight         float8_e4m3fn [O, I]
                 MODULE.weight_scale   [O, 1]

Axes: O outputs, I inputs, S scales of an output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from chopjax.models.formats import FORMATS, Kind

KEY, METHOD = "quantization_config", "compressed-tensors"  # in config.json
FORMAT: dict[Kind, str] = {
    "int4": "pack-quantized",
    "int8": "pack-quantized",
    "fp8": "float-quantized",
}
PACKED, SCALE, SHAPE = "weight_packed", "weight_scale", "weight_shape"


def describe(kind: Kind, block: int, ignore: Any) -> dict[str, Any]:
    """What config.json says under KEY. ignore: names of modules that are
    Linear and are not quantized."""
    weights = {
        "num_bits": FORMATS[kind].bits,
        "type": "float" if kind == "fp8" else "int",
        "symmetric": True,
        "strategy": "group" if block else "channel",
        "group_size": block or None,
        "dynamic": False,
        "observer": "minmax",
    }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
    }
    return {
        "quant_method": METHOD,
        "format": FORMAT[kind],
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignore,
        "kv_cache_scheme": None,
    }


class Held(NamedTuple):
    """How a checkpoint's matrices are quantized. block: inputs that share a scale; 0: all."""

    kind: Kind
    block: int


def held_as(raw_config: Mapping[str, Any]) -> Held | None:
    """What config.json says, where it says it as `describe` does; None for a checkpoint that is not
    quantized, or otherwise."""
    said = raw_config.get(KEY)
    if not isinstance(said, dict):
        return None
    ways = [Held(kind, block) for kind in FORMAT for block in FORMATS[kind].blocks or (0,)]
    return next((way for way in ways if said == describe(*way, said.get("ignore"))), None)


def without_codes(raw_config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the same model in floating point: without what `describe` says. Anybody else's
    words stay, and are refused by who computes."""
    own = held_as(raw_config) is not None
    return {key: value for key, value in raw_config.items() if key != KEY or not own}


def packed_width(kind: Kind, inputs: int) -> int:
    """int32 words of a row."""
    return -(-inputs * FORMATS[kind].bits // 32)


def pack(codes_OI: np.ndarray, kind: Kind) -> np.ndarray:
    """Codes of `formats.encode` → int32 [O, packed_width]."""
    width = packed_width(kind, codes_OI.shape[1])
    room = width * 32 // FORMATS[kind].bits - codes_OI.shape[1]
    # int4's codes are positive as `encode` gives them; int8's become so by their highest bit.
    plain = codes_OI if kind == "int4" else codes_OI.view(np.uint8) ^ 0x80
    padded = np.pad(plain, ((0, 0), (0, room)))
    if kind == "int4":
        padded = padded[:, ::2] | padded[:, 1::2] << 4
    return np.ascontiguousarray(padded).view("<i4")


def unpack(packed_OW: np.ndarray, kind: Kind) -> np.ndarray:
    """The inverse of `pack`, with what was added to fill the last word: uint8 or int8 [O, I]."""
    plain = np.ascontiguousarray(packed_OW, "<i4").view(np.uint8)
    if kind == "int8":
        return (plain ^ 0x80).view(np.int8)
    return np.stack([plain & 15, plain >> 4], axis=-1).reshape(len(plain), -1)
