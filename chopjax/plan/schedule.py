"""What a chip does in one step, operation by operation, as the compiler put them in order."""

from __future__ import annotations

import dataclasses

from chopjax.plan.collectives import KINDS
from chopjax.plan.hlo import Instruction, Program, attribute
from chopjax.plan.products import product_flops, unknown_kernels
from chopjax.plan.topology import AnyChip
from chopjax.plan.traffic import bytes_moved


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one step on one chip."""

    flops: int  # of the matrix products that are carried out
    hbm_bytes: int  # read and written
    seconds: float  # of all operations but collectives and what runs beside others
    unknown_kernels: list[str]  # that count by their bytes alone


def work(program: Program, chip: AnyChip, tile_share: float) -> Work:
    """Operations run one after the other, each as long as its products take at the chip's peak, or
    its bytes, whichever takes longer. Of a loop, all of its runs.

    tile_share: as `product_flops` has it.
    """
    flops = hbm_bytes = 0
    seconds = 0.0
    for computation, instruction, runs in program.instructions():
        if computation in program.inner:
            continue
        products, moved, alone = operation(program, computation, instruction, chip, tile_share)
        flops += runs * products
        hbm_bytes += runs * moved
        seconds += runs * alone
    return Work(flops, hbm_bytes, seconds, unknown_kernels(program))


def operation(
    program: Program, computation: str, instruction: Instruction, chip: AnyChip, tile_share: float
) -> tuple[int, int, float]:
    """FLOPs, bytes and seconds of one instruction, each time that it runs; no seconds for
    collectives and what runs beside others."""
    products = product_flops(program, computation, instruction, tile_share)
    moved = bytes_moved(program, computation, instruction)
    if instruction.opcode.endswith("-start") or _is_collective(program, instruction):
        return products, moved, 0.0
    return products, moved, max(products / chip.flops, moved / chip.hbm_bandwidth)


def _is_collective(program: Program, instruction: Instruction) -> bool:
    """Also a fusion that is nothing else: an all-reduce and its slice, or the first or last piece
    of a collective that is spread over several. Those between come out of a fusion in a tuple,
    beside its own work."""
    if instruction.opcode in KINDS:
        return True
    inner = program.computations.get(attribute(instruction, "calls") or "", {})
    return any(i.opcode in KINDS for i in inner.values()) and not any(
        i.is_root and i.opcode == "tuple" for i in inner.values()
    )
