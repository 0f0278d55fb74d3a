"""compute.after_chop: how the steps after the chop compute. No jax."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from chopjax.errors import UserError
from chopjax.train.compiler_options import read_options

Gather = Literal["layer", "step"]


@dataclasses.dataclass(frozen=True)
class AfterChopSettings:
    """What of `compute` is another once the layers are gone. A run that trains the parent first
    has settings that fit the parent; half of it has room to keep more. What is not set stays."""

    # in place of compute.remat
    remat: Literal["same", "none", "dots", "dots_except_mlp", "full"] = "same"
    microbatches: int = 0  # in place of compute.microbatches; 0: the same
    loss_chunk: int = 0  # in place of compute.loss_chunk; 0: the same
    layers: Literal["same", "loop", "unrolled"] = "same"  # in place of compute.layers
    gather: Literal["same", "layer", "step"] = "same"  # in place of compute.gather
    compiler_options: str = ""  # in place of compute.compiler_options; empty: the same

    def given(self) -> dict[str, Any]:
        """Field of `compute` → value, of those that are set."""
        return {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        }

    def problems(self, batch_size: int, chops: bool) -> list[str]:
        """What is wrong, one sentence each. chops: whether the run does."""
        parts, where = self.microbatches, "compute.after_chop"
        numbers = {"microbatches": parts, "loss_chunk": self.loss_chunk}
        found = [f"{where}.{name} is {n}: not below 0" for name, n in numbers.items() if n < 0]
        if parts > 0 and batch_size % parts:
            found.append(f"data.batch_size {batch_size}: not a multiple of {where}.microbatches")
        if self.given() and not chops:
            found.append(f"{where}: there is no chop in the run; set compute itself")
        try:
            read_options(self.compiler_options)
        except UserError as error:
            found.append(str(error))
        return found
