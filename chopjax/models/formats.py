"""What the formats of quantized kernels are, and how numbers become codes and scales. No jax.

    nf4   QLoRA's NormalFloat (arXiv 2305.14314, section 3 and appendix E). The matrix as a
          checkpoint's Linear has it, [out, in], is one row of numbers; of every 64 of them the
          largest magnitude is kept, and of each number, divided by that, the nearest of 16 values.
          The same codes and scales as bitsandbytes'; scales are not quantized themselves. Where 64
          does not divide the inputs, blocks cross rows.
    int4  of every 128 (or 64, 32, 16) inputs of an output the largest magnitude / 7 is the scale,
          and a code the nearest multiple of it, from -7 to 7.
    int8  a scale for every output, its largest magnitude / 127, and the nearest multiple of it.
    fp8   a scale for every output, its largest magnitude / 448, and the nearest of e4m3's values
          (arXiv 2209.05433) times it.

Axes: O outputs, I inputs, S scales of an output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np

from chopjax.errors import UserError, listing
from chopjax.models import parameters
from chopjax.models.config import ModelConfig

Kind = Literal["nf4", "int4", "int8", "fp8"]


class Format(NamedTuple):
    """bits: of a code; two of four bits share a byte. codes: their type. largest: the code of the
    largest magnitude that a scale is for. blocks: how many numbers may share a scale, the best
    first; none: all inputs of an output do."""

    bits: int
    codes: np.dtype[Any]
    largest: float
    blocks: tuple[int, ...] = ()


FORMATS: dict[Kind, Format] = {
    "nf4": Format(4, np.dtype(np.uint8), 1.0, (64,)),
    "int4": Format(4, np.dtype(np.uint8), 7.0, (128, 64, 32, 16)),
    "int8": Format(8, np.dtype(np.int8), 127.0),
    "fp8": Format(8, np.dtype(ml_dtypes.float8_e4m3fn), 448.0),
}
# The quantiles of a normal distribution, in float32 as in the paper's appendix E.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
ZERO = 8  # of int4 in its four bits, which hold no sign
_CHUNK = 2**20  # numbers that are quantized at a time: they stay in the processor's cache


class Form(NamedTuple):
    """Which kernel it is that was quantized. Sizes are without the leading axes.

    block: how many numbers share a scale; 0: all inputs of an output.
    """

    kind: Kind
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    block: int

    @property
    def numbers(self) -> int:
        return math.prod(self.inputs) * math.prod(self.outputs)

    @property
    def by_row(self) -> bool:
        """Whether a row of inputs is whole blocks; else all of the kernel is one row."""
        return not self.block or math.prod(self.inputs) % self.block == 0

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of codes and of scales as they are held, without the leading axes."""
        reads, makes = math.prod(self.inputs), math.prod(self.outputs)
        if not self.block:
            return (reads, makes), (makes,)
        if self.by_row:
            return (reads // 2, makes), (reads // self.block, makes)
        blocks = -(-self.numbers // self.block)  # the last one is filled up
        return (blocks * self.block // 2,), (blocks,)


def forms(config: ModelConfig, kind: Kind, block: int | None = None) -> dict[str, Form]:
    """Path → form, of every kernel of the blocks. block: as `choose_block` is told. Raises
    UserError where a width does not fit."""
    size = parameters.sizes(config)
    sizes = {
        path: (tuple(size[a] for a in axes.inputs), tuple(size[a] for a in axes.outputs))
        for path, axes in parameters.kernels(config).items()
    }
    widths = {path: math.prod(inputs) for path, (inputs, _) in sizes.items()}
    block = choose_block(kind, widths, block)
    return {path: Form(kind, *both, block) for path, both in sizes.items()}


def choose_block(kind: Kind, inputs: Mapping[str, int], wanted: int | None = None) -> int:
    """How many inputs share a scale: the best block of the format that fits all matrices, or the
    wanted one; 0 where an output has one scale. inputs: of each matrix.

    Raises UserError for a block that the format does not have, and where none divides all widths;
    then it names the matrices.
    """
    blocks = FORMATS[kind].blocks
    if wanted is not None and wanted not in blocks:
        known = f"one of {', '.join(map(str, blocks))}" if blocks else "for int4"
        raise UserError(f"--group {wanted}: with --weights {kind} it is {known}")
    if kind == "nf4" or not blocks:
        return next(iter(blocks), 0)
    fitting = [block for block in blocks if not any(n % block for n in inputs.values())]
    if wanted is None and fitting:
        return fitting[0]
    if wanted in fitting:
        return wanted
    least = wanted or min(blocks)
    problems = [f"{name} has {n:,} inputs" for name, n in inputs.items() if n % least]
    smaller = f"Take --group {fitting[0]}, or" if fitting else "Take"
    raise UserError(
        f"--weights {kind}: {least} inputs that share a scale do not divide every width of this "
        f"model:\n{listing(problems)}\n{smaller} int8 or fp8, which have no groups"
    )


def quantize(rows_OI: np.ndarray, kind: Kind, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of one matrix, as a checkpoint's Linear has it, of any float type; of one
    shape with `Form.shapes`. Besides the result, host memory holds a few million bytes, and the
    matrix again where blocks cross rows."""
    makes, reads = rows_OI.shape
    form = Form(kind, (reads,), (makes,), block)
    codes_shape, scales_shape = form.shapes()
    codes, scales = np.empty(codes_shape, FORMATS[kind].codes), np.empty(scales_shape, np.float32)
    if not form.by_row:
        padded = np.zeros((1, scales.size * block), np.float32)
        padded[0, : rows_OI.size] = rows_OI.reshape(-1)
        made, own = encode(padded, kind, block)
        return in_bytes(made, block)[0], own[0]
    step = max(_CHUNK // reads, 1)
    for first in range(0, makes, step):
        part = slice(first, first + step)
        codes[:, part], scales[..., part] = held(*encode(rows_OI[part], kind, block), block)
    return codes, scales


def encode(
    rows_OI: np.ndarray, kind: Kind, block: int, scale_type: Any = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Codes [O, I], one a number, and scales [O, S] of the type that they will be kept in. Blocks
    are whole: `block` divides I, or is 0."""
    scales_OS = scales_of(rows_OI, kind, block, scale_type)
    return codes_of(rows_OI, scales_OS, kind, block), scales_OS


def scales_of(
    rows_OI: np.ndarray, kind: Kind, block: int, scale_type: Any = np.float32
) -> np.ndarray:
    """The scales of `encode`."""
    wide_OI = rows_OI.astype(np.float32)  # in bfloat16, numpy takes ten times as long
    blocks = wide_OI.reshape(len(wide_OI), -1, block or wide_OI.shape[1])
    scales_OS: np.ndarray = np.abs(blocks).max(axis=2) / np.float32(FORMATS[kind].largest)
    return scales_OS.astype(scale_type)


def codes_of(rows_OI: np.ndarray, scales_OS: np.ndarray, kind: Kind, block: int) -> np.ndarray:
    """The codes of `encode`: the nearest ones, by these scales."""
    about, wide_OI = FORMATS[kind], rows_OI.astype(np.float32)
    blocks = wide_OI.reshape(len(wide_OI), -1, block or wide_OI.shape[1])
    steps = scales_OS.astype(np.float32)[..., None]
    steps = np.where(steps, steps, np.float32(1))
    if kind == "nf4":
        scaled = blocks * (1 / steps)  # as bitsandbytes does it
        codes = np.zeros(scaled.shape, np.uint8)
        for edge in _EDGES:
            codes += scaled > edge
        return codes.reshape(wide_OI.shape)
    # A scale that was rounded down would ask for more than the largest code.
    scaled = np.clip(blocks / steps, -about.largest, about.largest)
    if kind != "fp8":
        scaled = np.rint(scaled) + (ZERO if kind == "int4" else 0)
    return scaled.astype(about.codes).reshape(wide_OI.shape)


def decode(
    codes_OI: np.ndarray, scales_OS: np.ndarray, kind: Kind, block: int, dtype: Any
) -> np.ndarray:
    """The numbers that `encode`'s codes stand for, [O, I], computed in float32 as `Quantized` does
    it; not of nf4. scales_OS: float32."""
    wide_OI = codes_OI.astype(np.float32)
    if kind == "int4":
        wide_OI -= ZERO
    blocks = wide_OI.reshape(len(wide_OI), -1, block or wide_OI.shape[1])
    blocks *= scales_OS[..., None]
    return wide_OI.astype(dtype)


_VALUES = np.array(NF4, np.float32)
_EDGES = (_VALUES[:-1] + _VALUES[1:]) / 2


def held(codes_OI: np.ndarray, scales_OS: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """What `encode` gives, as `Form.shapes` has it; blocks are whole."""
    if not block:
        return codes_OI.T, scales_OS[:, 0]
    return in_bytes(codes_OI, block).T, scales_OS.T


def in_bytes(codes_OI: np.ndarray, block: int) -> np.ndarray:
    """Two codes of four bits a byte, [O, I/2]: of a block's first half in the byte's high half, of
    the others in the low one. Why: see quantized.py."""
    halves = codes_OI.reshape(len(codes_OI), -1, 2, block // 2)
    packed: np.ndarray = halves[:, :, 0] << 4 | halves[:, :, 1]
    return packed.reshape(len(codes_OI), -1)
