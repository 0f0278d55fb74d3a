"""How many bytes a compiled step moves between HBM and the cores."""

from __future__ import annotations

import math

from chopjax.plan.collectives import KINDS
from chopjax.plan.gpu_kernels import library_call
from chopjax.plan.hlo import Instruction, Program, array_bytes, attribute, elements, members

# Moving nothing, or counted where the instructions inside are.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call",
    "conditional", "after-all", "partition-id", "replica-id", "iota", "opt-barrier",
    "copy-done", "async-done", "async-update", "all-gather-done", "all-reduce-done",
    "collective-permute-done", "send-done", "recv-done",
}  # fmt: skip
# Room that others fill, and parts that lie beside each other already.
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast")
# The first and the last piece of a collective that is spread over fusions.
_SPREAD_START, _SPREAD_DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"
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
    return sum(
        runs * bytes_moved(program, computation, instruction)
        for computation, instruction, runs in program.instructions()
        if computation not in program.inner
    )


def bytes_moved(program: Program, computation: str, instruction: Instruction) -> int:
    """Of one instruction of this computation, each time that it runs."""
    if instruction.opcode in _FREE or _calls(instruction, *_FREE_CALLS):
        return 0
    here = program.computations[computation]
    operands = [here[name].shape for name in instruction.operands if name in here]
    inner = program.computations.get(attribute(instruction, "calls") or "")
    if inner:
        wanted = {source.name: 1.0 for source in _sources(inner) if not _passes(source)}
        shares = _shares_read(program, inner, wanted)
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
    written = members(instruction.shape)
    if library_call(instruction) is not None:
        written = [part for part in written if not part.startswith(("s8", "u8"))]  # its work space
    return sum(array_bytes(shape, only_hbm=True) for shape in [*operands, *written])


def _result(instruction: Instruction) -> str:
    """The shape of what comes out: of (operands, result, …) where the instruction only starts."""
    starts = instruction.opcode.endswith("-start")
    return members(instruction.shape)[1] if starts else instruction.shape


def _shares_read(
    program: Program, inner: dict[str, Instruction], wanted: dict[str, float]
) -> dict[int, float]:
    """Parameter number of a fusion → the share of its elements that are read, all in all.

    wanted: of what its results are computed by, the share of each that is asked for.
    """
    wanted = dict(wanted)
    shares: dict[int, float] = {}
    for instruction in reversed(inner.values()):
        share = wanted.get(instruction.name, 0.0)
        if instruction.opcode == "parameter":
            shares[int(instruction.arguments)] = share
        if not share:
            continue
        nested = program.computations.get(attribute(instruction, "calls") or "")
        deeper = {}
        if nested:
            deeper = _shares_read(program, nested, {i.name: share for i in _sources(nested)})
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


def _sources(inner: dict[str, Instruction]) -> list[Instruction]:
    """What the results of a fusion are computed by."""
    root = next(i for i in inner.values() if i.is_root)
    return [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]


def _passes(source: Instruction) -> bool:
    """Whether a result of a fusion is only handed on: what came in, or the array that a collective
    fills over several fusions. Its first piece counts for all of them."""
    return (
        source.opcode == "parameter"
        or (source.opcode in KINDS and "chain_id=" in source.attributes)
        or _calls(source, _SPREAD_DONE)
    )


def _calls(instruction: Instruction, *targets: str) -> bool:
    return instruction.opcode == "custom-call" and any(
        f'custom_call_target="{target}"' in instruction.attributes for target in targets
    )


def _written(program: Program, inner: dict[str, Instruction], shape: str) -> int:
    """What a fusion writes of its result, of this shape: of what it updates in place the new part
    alone."""
    sources = _sources(inner)
    if sources[0].is_root:
        if _calls(sources[0], _SPREAD_START):
            shape = members(shape)[1]  # (operand, result, …)
        parts = [shape]
    else:
        parts = members(shape)
    return sum(
        _written_by(program, inner, source, part)
        for source, part in zip(sources, parts, strict=True)
        if not _passes(source)
    )


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
