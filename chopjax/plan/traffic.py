"""How many bytes a compiled step moves between HBM and the cores."""

from __future__ import annotations

from chopjax.plan.hlo import Instruction, Program, array_bytes, attribute, members

# Moving nothing, or counted where the instructions inside are.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call",
    "conditional", "after-all", "partition-id", "replica-id", "iota", "opt-barrier",
    "copy-done", "async-done", "async-update", "all-gather-done", "all-reduce-done",
    "collective-permute-done", "send-done", "recv-done",
}  # fmt: skip
_SLICES = {"dynamic-slice", "slice", "gather"}


def hbm_bytes(program: Program) -> int:
    """Bytes read and written in one step on one chip.

    Every instruction outside fusions reads its operands and writes its result, as far as the
    compiler put them into HBM; a slice reads what it takes, an update in place writes what is new.
    """
    fused = {
        attribute(instruction, "calls")
        for instructions in program.computations.values()
        for instruction in instructions.values()
        if instruction.opcode in ("fusion", "async-start")
    }
    total = 0
    for computation, instruction, runs in program.instructions():
        if computation not in fused and instruction.opcode not in _FREE:
            total += runs * _moved(program, computation, instruction)
    return total


def _moved(program: Program, computation: str, instruction: Instruction) -> int:
    here = program.computations[computation]
    operands = [here[name] for name in instruction.operands if name in here]
    inner = program.computations.get(attribute(instruction, "calls") or "", {})
    root = next((i for i in inner.values() if i.is_root), instruction)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * array_bytes(operands[1].shape, only_hbm=True)
    if root.opcode in _SLICES and instruction.opcode != "fusion":
        read = array_bytes(root.shape) if array_bytes(operands[0].shape, only_hbm=True) else 0
        return read + array_bytes(_result(instruction), only_hbm=True)
    if instruction.opcode.endswith("-start"):
        parts = members(instruction.shape)[:2]  # what is read, what is written
        return sum(array_bytes(part, only_hbm=True) for part in parts)
    if instruction.opcode != "fusion" or not inner:
        shapes = [operand.shape for operand in operands] + [instruction.shape]
        return sum(array_bytes(shape, only_hbm=True) for shape in shapes)
    total = _written(inner, instruction)
    parameters = [i for i in inner.values() if i.opcode == "parameter"]
    for parameter in parameters:
        position = int(parameter.arguments)
        if position < len(operands):
            total += _read(inner, parameter, operands[position])
    return total


def _result(instruction: Instruction) -> str:
    """The shape of what comes out: of (operands, result, …) where the instruction only starts."""
    starts = instruction.opcode.endswith("-start")
    return members(instruction.shape)[1] if starts else instruction.shape


def _read(inner: dict[str, Instruction], parameter: Instruction, operand: Instruction) -> int:
    """What a fusion reads of one operand: all of it, unless only slices are taken."""
    whole = array_bytes(operand.shape, only_hbm=True)
    readers = [i for i in inner.values() if parameter.name in i.operands]
    if whole and readers and all(_takes_part(reader, parameter) for reader in readers):
        parts = [r.shape for r in readers if r.opcode in _SLICES]
        return min(whole, sum(array_bytes(part) for part in parts))
    return whole


def _takes_part(reader: Instruction, parameter: Instruction) -> bool:
    updates_in_place = (
        reader.opcode == "dynamic-update-slice" and reader.operands[0] == parameter.name
    )
    return updates_in_place or (reader.opcode in _SLICES and reader.operands[0] == parameter.name)


def _written(inner: dict[str, Instruction], fusion: Instruction) -> int:
    """What a fusion writes: its result, or the new part where it updates an operand in place."""
    root = next(i for i in inner.values() if i.is_root)
    while root.opcode in ("bitcast", "copy") and root.operands[0] in inner:
        root = inner[root.operands[0]]
    if root.opcode == "dynamic-update-slice" and root.operands[1] in inner:
        return array_bytes(inner[root.operands[1]].shape)
    return array_bytes(fusion.shape, only_hbm=True)
