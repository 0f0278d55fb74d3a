"""FLOPs of what a compiled program asks of NVIDIA's libraries: cuBLAS and cuDNN."""

from __future__ import annotations

import math
import re

from chopjax.plan.hlo import Instruction, sides

# Products of T x S scores with a head's vectors: scores and values; and backward the scores again,
# the gradients of values and weights, of queries and keys.
FORWARD, BACKWARD = 2, 5
_TARGET = re.compile(r'custom_call_target="([^"]+)"')
# NVIDIA's and those of jax's and XLA's own kernels for its GPUs; other backends have other names.
_LIBRARIES = re.compile(r"__\w+\$|cu[a-z]*_|mosaic_gpu|\w*triton")
_WITHOUT_PRODUCTS = re.compile(r"__cub\$|cu_threefry|__gpu\$TopK|cudnn_dummy")
_MASKS_HALF = ("CAUSAL", "PADDING_CAUSAL")


def library_call(instruction: Instruction) -> str | None:
    """The library function that an instruction calls; None for what is no such call."""
    found = _TARGET.search(instruction.attributes)
    is_call = instruction.opcode == "custom-call" and found and _LIBRARIES.match(found[1])
    return found[1] if is_call and found else None


def library_flops(
    here: dict[str, Instruction], instruction: Instruction, target: str
) -> int | None:
    """Of one call, a multiply-add as two; None where they cannot be told."""
    if _WITHOUT_PRODUCTS.match(target):
        return 0
    if target.startswith("__cudnn$fmha"):
        return _attention(here, instruction, BACKWARD if "Backward" in target else FORWARD)
    if target.startswith("__cublas$"):
        return _gemm(here, instruction)
    return None


def work_space(instruction: Instruction) -> int:
    """Bytes that a call needs beside what the program shows, where no GPU was there to say so.

    cuDNN's backward pass sums the gradient of the queries in float32 (FlashAttention-2, arXiv
    2307.08691, section 3.2).
    """
    target = library_call(instruction)
    if target is None or not (target.startswith("__cudnn$fmha") and "Backward" in target):
        return 0
    return 4 * math.prod(sides(instruction.shape)[0])


def _attention(here: dict[str, Instruction], instruction: Instruction, products: int) -> int | None:
    """The scores that the mask shows, [B, N, T, S], by a head's size."""
    text = instruction.attributes
    scores = re.search(r'"intermediate_tensor_shape": ?\{.*?"dimensions": ?\[([^\]]*)\]', text)
    mask = re.search(r'"mask_type": ?"(\w+)"', text)
    window = re.search(r'"sliding_window_length": ?"?(\d+)', text)
    if scores is None or mask is None:
        return None
    batch, heads, queries, keys = (int(size.strip(' "')) for size in scores[1].split(","))
    seen = queries * keys
    if mask[1] in _MASKS_HALF:
        reach = int(window[1]) if window and int(window[1]) else keys
        seen = sum(min(row + 1, keys, reach) for row in range(queries))
    head_size = sides(here[instruction.operands[0]].shape)[0][-1]
    return 2 * products * batch * heads * seen * head_size


def _gemm(here: dict[str, Instruction], instruction: Instruction) -> int | None:
    summed = re.search(r'"lhs_contracting_dimensions": ?\[([^\]]*)\]', instruction.attributes)
    if summed is None:
        return None
    left, out = sides(here[instruction.operands[0]].shape)[0], sides(instruction.shape)[0]
    over = [int(dim.strip(' "')) for dim in summed[1].split(",") if dim.strip(' "')]
    return 2 * math.prod(out) * math.prod(left[dim] for dim in over)
