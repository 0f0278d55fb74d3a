"""How a decoder computes. No jax."""

from __future__ import annotations

import dataclasses
from typing import Literal

Dtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "dots", "dots_except_mlp", "full"]  # from what keeps most
Layers = Literal["loop", "unrolled"]
Attention = Literal["auto", "xla", "blocked", "cudnn", "splash"]


@dataclasses.dataclass(frozen=True)
class Compute:
    """How to compute, apart from what.

    dtype: of activations and matrix products; parameters keep their own and are cast block by
        block inside the scan. With float32 the products are full float32 on every device.
    remat: what the backward pass keeps of a block. "none" keeps everything; "dots" what the matrix
        products make (rotated queries, keys and values, attention's result, the residual stream
        between attention and feed-forward, gate and up), so that norms, activations and, where
        attention is "xla", scores are computed again; "dots_except_mlp" the same without gate and
        up, half of it all; "full" only the block's input.
    attention: see attention.py.
    layers: "loop" is one block in the program, which runs for each layer; "unrolled" all of them,
        one after the other. What a loop keeps for the backward pass it copies into stacks and out
        of them; unrolled, it stays where it is, but the program takes longer to compile, the more
        layers the longer.
    """

    dtype: str = "float32"  # activations and matrix products
    remat: Remat = "none"  # what the backward pass computes again
    # which implementation; auto takes the fastest that the device has
    attention: Attention = "auto"
    layers: Layers = "loop"  # in the program; unrolled is faster, and long to compile

    @property
    def precision(self) -> str:
        """For jax.default_matmul_precision: TPUs and recent GPUs round float32 operands unless
        told not to."""
        return "highest" if self.dtype == "float32" else "default"
