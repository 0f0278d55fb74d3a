"""How many bytes a compiled step moves between HBM and the cores."""

from __future__ import annotations

import math

from chopjax.plan.hlo import Instruction, Program, array_bytes, attribute, elements, members

# Moving nothing, or counted where the instructions inside are.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call",
    "conditional", "after-all", "partition-id", "replica-id", "iota", "opt-barrier",
    "copy-done", "async-done", "async-update", "all-gather-done", "all-reduce-done",
    "collective-permute-done", "send-done", "recv-done",
}  # fmt: skip
# Room that others fill, and parts that lie beside each other already.
_FREE_CALLS = ('custom_call_target="AllocateBuffer"', 'custom_call_target="ConcatBitcast"')
_SLICES = {"dynamic-slice", "slice", "gather"}
# Of these, a part of the result needs that part of every operand.
_ELEMENTWISE = {
    "bitcast", "copy", "convert", "reshape", "transpose", "reduce-precision", "negate", "add",
    "subtract", "multiply", "divide", "maximum", "minimum", "select", "exponential", "log", "rsqrt",
    "sqrt", "tanh", "logistic", "sign", "and", "or", "compare",
}  # fmt: skip


def hbm_bytes(program: Program) -> int:
    """Bytes read and written in one step on one chip.

    Every instruction outside fusions reads its operands and writes its result, as far as the
    compiler put them into HBM; a slice reads what it takes, an update in place writes what is new,
    also deep within a fusion.
    """
    total = 0
    for computation, instruction, runs in program.instructions():
        free = instruction.opcode in _FREE or (
            instruction.opcode == "custom-call"
            and any(target in instruction.attributes for target in _FREE_CALLS)
        )
        if computation not in program.inner and not free:
            total += runs * _moved(program, computation, instruction)
    return total


def _moved(program: Program, computation: str, instruction: Instruction) -> int:
    here = program.computations[computation]
    operands = [here[name].shape for name in instruction.operands if name in here]
    inner = program.computations.get(attribute(instruction, "calls") or "")
    if inner:
        shares = _shares_read(program, inner)
        read = (
            round(shares.get(position, 0.0) * array_bytes(shape, only_hbm=True))
            for position, shape in enumerate(operands)
        )
        return sum(read) + _written(program, inner, _result(instruction))
    if instruction.opcode == "dynamic-update-slice":
        return 2 * array_bytes(operands[1], only_hbm=True)
    if instruction.opcode in _SLICES:
        read_part = array_bytes(instruction.shape) if array_bytes(operands[0], only_hbm=True) else 0
        return read_part + array_bytes(instruction.shape, only_hbm=True)
    if instruction.opcode.endswith("-start"):
        parts = members(instruction.shape)[:2]  # what is read, what is written
        return sum(array_bytes(part, only_hbm=True) for part in parts)
    return sum(array_bytes(shape, only_hbm=True) for shape in [*operands, instruction.shape])


def _result(instruction: Instruction) -> str:
    """The shape of what comes out: of (operands, result, …) where the instruction only starts."""
    starts = instruction.opcode.endswith("-start")
    return members(instruction.shape)[1] if starts else instruction.shape


def _shares_read(
    program: Program, inner: dict[str, Instruction], of_root: float = 1.0
) -> dict[int, float]:
    """Parameter number of a fusion → the share of its elements that are read, all in all.

    of_root: the share of the result that is wanted.
    """
    wanted = {next(i.name for i in inner.values() if i.is_root): of_root}
    shares: dict[int, float] = {}
    for instruction in reversed(inner.values()):
        share = wanted.get(instruction.name, 0.0)
        if instruction.opcode == "parameter":
            shares[int(instruction.arguments)] = share
        if not share:
            continue
        nested = program.computations.get(attribute(instruction, "calls") or "")
        deeper = _shares_read(program, nested, share) if nested else {}
        for position, name in enumerate(instruction.operands):
            if name not in inner:
                continue
            part = 1.0
            if nested:
                part = deeper.get(position, 0.0)
            elif instruction.opcode in _ELEMENTWISE:
                part = share
            elif instruction.opcode in _SLICES and position == 0:
                part = share * elements(instruction.shape) / max(elements(inner[name].shape), 1)
            elif instruction.opcode == "dynamic-update-slice" and position == 0:
                part = 0.0  # updated in place
            wanted[name] = min(1.0, wanted.get(name, 0.0) + part)
    return shares


def _written(program: Program, inner: dict[str, Instruction], shape: str) -> int:
    """What a fusion writes of its result, of this shape: of what it updates in place the new part
    alone."""
    root = next(i for i in inner.values() if i.is_root)
    if root.opcode == "tuple":
        parts = zip(root.operands, members(shape), strict=True)
        return sum(_written_by(program, inner, inner[name], part) for name, part in parts)
    return _written_by(program, inner, root, shape)


def _written_by(
    program: Program, inner: dict[str, Instruction], source: Instruction, shape: str
) -> int:
    while source.opcode in ("bitcast", "copy") and source.operands[0] in inner:
        source = inner[source.operands[0]]
    nested = program.computations.get(attribute(source, "calls") or "")
    if nested:
        return _written(program, nested, shape)
    whole = array_bytes(shape, only_hbm=True)
    if source.opcode != "dynamic-update-slice" or source.operands[1] not in inner:
        return whole
    return math.ceil(whole * elements(inner[source.operands[1]].shape) / elements(shape))
