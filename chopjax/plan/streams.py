"""Which part of a GPU's collectives runs beside its operations: two streams, in program order.

Operations run on one stream, collectives on another. A collective begins where the program starts
it, or when the one before it is done; the operations wait where the program waits for it. What the
compiler marks as synchronous is waited for at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from chopjax.plan.collectives import KINDS
from chopjax.plan.hlo import Instruction, Program, attribute, called

Place = tuple[str, str]  # computation, instruction


def hidden_shares(
    program: Program,
    operation_seconds: Callable[[str, Instruction], float],
    collective_seconds: Callable[[str, Instruction], float],
) -> tuple[dict[Place, float], float]:
    """Of each collective, the share of its time in which operations run; and the seconds of one
    step, all waiting included.

    The functions give an instruction's seconds by its computation, once.
    """
    shares: dict[Place, float] = {}

    def duration(computation: str) -> float:
        now = free = 0.0  # of the operations' stream, of the collectives'
        running: dict[str, tuple[Place, float, float]] = {}  # started: place, seconds, end
        for instruction in program.computations[computation].values():
            place = _collective(program, computation, instruction)
            if place:
                inside = program.computations[place[0]][place[1]]
                seconds = collective_seconds(place[0], inside)
                free = max(now, free) + seconds
                if instruction.opcode.endswith("-start") and not _at_once(instruction):
                    running[instruction.name] = place, seconds, free
                else:
                    shares[place], now = 0.0, free
            elif instruction.opcode.endswith("-done") and instruction.operands[0] in running:
                place, seconds, end = running.pop(instruction.operands[0])
                waited = max(end - now, 0.0)
                shares[place] = max(1 - waited / seconds, 0.0) if seconds else 1.0
                now += waited
            elif instruction.opcode == "while":
                body = attribute(instruction, "body") or ""
                turns = program.runs.get(body, 0) // program.runs[computation]
                now += turns * duration(body) if turns else 0.0
            elif instruction.opcode == "call":
                now += sum(duration(name) for name in called(instruction))
            elif instruction.opcode == "conditional":
                now += sum(duration(name) for name in _taken(program, instruction))
            else:
                now += operation_seconds(computation, instruction)
        return max(now, free)

    return shares, duration(program.entry)


def _collective(program: Program, computation: str, instruction: Instruction) -> Place | None:
    """Where the collective stands that an instruction is, or starts."""
    if instruction.opcode.removesuffix("-start") in KINDS:
        return computation, instruction.name
    if instruction.opcode == "async-start":
        for name in called(instruction):
            for inside in program.computations[name].values():
                if inside.opcode in KINDS:
                    return name, inside.name
    return None


def _taken(program: Program, conditional: Instruction) -> list[str]:
    """The branch that stands for all: the one that was counted."""
    names: list[str] = re.findall(r"%([\w.\-]+)", conditional.attributes)
    return [name for name in names if name in program.runs][:1]


def _at_once(instruction: Instruction) -> bool:
    return '"is_sync":true' in instruction.attributes
