"""FLOPs of the matrix products in a compiled program, a multiply-add as two."""

from __future__ import annotations

import functools
import math
import re

from chopjax.plan.gpu_kernels import library_call, library_flops
from chopjax.plan.hlo import Instruction, Program, called, members, sides

_KERNEL = 'custom_call_target="tpu_custom_call"'
# Products of T x T scores with a head's vectors in each kernel of splash attention
# (jax/experimental/pallas/ops/tpu/splash_attention).
SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}


def product_flops(
    program: Program, computation: str, instruction: Instruction, tile_share: float
) -> int:
    """Of an instruction of this computation and of all within it. A kernel that is not known
    (`unknown_kernels`) counts none.

    tile_share: the share of the T x T scores that splash attention's tiles cover. What it leaves
    out is in the kernel's arguments, not in its text.
    """
    here = program.computations[computation]
    if instruction.opcode in ("dot", "convolution"):
        (left,), (out,) = sides(here[instruction.operands[0]].shape), sides(instruction.shape)
        count = _dot if instruction.opcode == "dot" else _convolution
        return count(left, out, instruction.attributes)
    if _KERNEL in instruction.attributes:
        return _kernel(here, instruction, tile_share) or 0
    if (target := library_call(instruction)) is not None:
        return library_flops(here, instruction, target) or 0
    return sum(
        product_flops(program, name, within, tile_share)
        for name in called(instruction)
        if name in program.inner  # what a call runs counts by itself
        for within in program.computations[name].values()
    )


def unknown_kernels(program: Program) -> list[str]:
    """Names of the kernels in a program whose products cannot be counted."""
    found = {
        re.sub(r"[.\d]+$", "", instruction.name)
        for computation, instruction, _ in program.instructions()
        if _KERNEL in instruction.attributes
        and _kernel(program.computations[computation], instruction, 1.0) is None
    }
    for computation, instruction, _ in program.instructions():
        target = library_call(instruction)
        here = program.computations[computation]
        if target is not None and library_flops(here, instruction, target) is None:
            found.add(target)
    return sorted(found)


def _dot(left: tuple[int, ...], out: tuple[int, ...], text: str) -> int:
    summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", text)
    dims = [int(d) for d in summed[1].split(",") if d] if summed else []
    return 2 * math.prod(out) * math.prod(left[d] for d in dims)


def _convolution(left: tuple[int, ...], out: tuple[int, ...], text: str) -> int:
    """As XLA's HloCostAnalysis counts it: what is multiplied with padding is not. The TPU compiler
    writes the products of several dimensions as convolutions over some of them."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text)
    assert labels, text
    of_left, _, of_out = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", text)
    asked = dict(part.split("=") for part in window[1].split()) if window else {}
    groups = {
        kind: int(count) for kind, count in re.findall(r"(feature|batch)_group_count=(\d+)", text)
    }

    def of_dimension(name: str, position: int, otherwise: str = "1") -> str:
        return asked[name].split("x")[position] if name in asked else otherwise

    positions = 1
    for dimension in range(len(of_left) - 2):
        positions *= _valid_positions(
            left[of_left.index(str(dimension))],
            out[of_out.index(str(dimension))],
            int(of_dimension("size", dimension)),
            int(of_dimension("stride", dimension)),
            int(of_dimension("pad", dimension, "0_0").split("_")[0]),
            int(of_dimension("lhs_dilate", dimension)),
            int(of_dimension("rhs_dilate", dimension)),
        )
    features = left[of_left.index("f")] // groups.get("feature", 1)
    batch = left[of_left.index("b")] // groups.get("batch", 1)
    return 2 * positions * batch * features * out[of_out.index("f")]


@functools.cache
def _valid_positions(
    left: int, out: int, size: int, stride: int, low: int, left_dilation: int, dilation: int
) -> int:
    """Pairs of a place in the result and one in the window that meet a number of the left side."""
    places = (place * stride - low + tap * dilation for tap in range(size) for place in range(out))
    return sum(
        place % left_dilation == 0 and 0 <= place // left_dilation < left for place in places
    )


def _kernel(
    here: dict[str, Instruction], instruction: Instruction, tile_share: float
) -> int | None:
    """Of a call of a Pallas kernel, by its name: jax's attention, libtpu's products by groups."""
    arguments = [here[name].shape for name in instruction.operands if name in here]
    # Behind integers that say which tiles, or which rows, there are.
    numbers = [sides(shape)[0] for shape in arguments if shape.startswith(("bf16", "f"))]
    splash = re.match(r"splash_m[hq]a_(fwd|dq|dkv)_", instruction.name)
    if splash:
        query = numbers[0]  # [(batch,) heads, T, head size]
        products = SPLASH_PRODUCTS[splash[1]]
        if splash[1] == "dkv":
            # One kernel for all three gradients has the queries' among its results.
            results = (sides(part)[0] for part in members(instruction.shape))
            products += sum(len(result) >= len(query) for result in results) > 2
        return round(2 * products * tile_share * math.prod(query) * query[-2])
    if instruction.name.startswith("ragged-dot-metadata"):
        return 0
    if instruction.name.startswith("ragged-dot"):
        # Rows, each with its group's kernel; or, of two lists of rows, a product for every group.
        rows, width = numbers[0]
        (out,) = sides(instruction.shape)
        return 2 * rows * math.prod(out[1:]) * (width if len(out) == 2 else 1)
    return None
