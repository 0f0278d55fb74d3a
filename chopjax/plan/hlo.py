"""Reading a compiled program (XLA's HLO text): computations, instructions, how often each runs.

Only what planning asks for: shapes and their bytes, operands, who calls whom, trip counts of loops.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

ELEMENT_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4,
    "s64": 8, "u64": 8, "f16": 2, "bf16": 2, "f32": 4, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\](\{[^{}]*\})?")
_NAME = re.compile(r"%([\w.\-]+(?:#\d+)*)")
# Space 0 is HBM and is not written; S(1) is on-chip vector memory, the others hold flags.
_ELSEWHERE = re.compile(r"S\(\d+\)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    shape: str  # as written, layouts included; "(a, b)" for tuples
    opcode: str
    operands: tuple[str, ...]
    arguments: str  # the operands as written: a constant's value stands there
    attributes: str  # the rest of the line
    is_root: bool


@dataclasses.dataclass(frozen=True)
class Program:
    """Computation name → instructions by name, in order; the entry; how often each one runs."""

    computations: dict[str, dict[str, Instruction]]
    entry: str
    runs: dict[str, int]
    unknown_loops: int  # loops whose trip count could not be read: counted once
    inner: frozenset[str]  # those that are one instruction's insides: of fusions, custom calls, …
    beside: frozenset[str]  # of these, those that run while others do: of an async-start

    def instructions(self) -> Iterator[tuple[str, Instruction, int]]:
        """(computation, instruction, runs) of all that run."""
        for computation, runs in self.runs.items():
            for instruction in self.computations[computation].values():
                yield computation, instruction, runs


def array_bytes(shape: str, only_hbm: bool = False) -> int:
    """Bytes of a shape, a tuple's members together, without the padding of its layout."""
    total = 0.0
    for kind, dims, layout in _ARRAY.findall(shape):
        if kind in ELEMENT_BYTES and not (only_hbm and _ELSEWHERE.search(layout)):
            total += ELEMENT_BYTES[kind] * math.prod(int(d) for d in dims.split(",") if d)
    return int(total)


def elements(shape: str) -> int:
    """Elements of a shape, a tuple's members together."""
    return sum(math.prod(array) for array in sides(shape))


def sides(shape: str) -> list[tuple[int, ...]]:
    """The sides of each array in a shape."""
    return [tuple(int(d) for d in dims.split(",") if d) for _, dims, _ in _ARRAY.findall(shape)]


def members(shape: str) -> list[str]:
    """The members of a tuple's shape; a plain shape is its own only member."""
    if not shape.startswith("("):
        return [shape]
    parts, depth, start = [], 0, 1
    for i, c in enumerate(shape):
        depth += (c in "([{") - (c in ")]}")
        if (c == "," and depth == 1) or (c == ")" and depth == 0):
            parts.append(re.sub(r"/\*.*?\*/", "", shape[start:i]).strip())
            start = i + 1
    return [part for part in parts if part]


def parse(text: str) -> Program:
    """HLO text, as XLA dumps it after optimization."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            current = header[2]
            computations[current] = {}
            entry = current if header[1] else entry
        elif current and " = " in line and line.startswith("  "):
            instruction = _instruction(line)
            for operand in instruction.operands:
                _write_out(operand, computations[current])
            computations[current][instruction.name] = instruction
    runs, inner, beside, unknown = _count_runs(computations, entry)
    return Program(computations, entry, runs, unknown, inner, beside)


def _instruction(line: str) -> Instruction:
    left, _, right = line.strip().partition(" = ")
    shape_end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    shape, rest = right[:shape_end], right[shape_end:].lstrip()
    start = rest.index("(")
    end = _closing(rest, start)
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        shape=shape,
        opcode=rest[:start],
        operands=tuple(_NAME.findall(rest[start:end])),
        arguments=rest[start + 1 : end],
        attributes=rest[end + 1 :],
        is_root=left.startswith("ROOT "),
    )


def _write_out(operand: str, computation: dict[str, Instruction]) -> None:
    """Newer printers write %x#2 for what older ones make a get-tuple-element of %x, index=2: add
    that, so that both read the same."""
    whole, mark, index = operand.rpartition("#")
    if not mark or operand in computation:
        return
    _write_out(whole, computation)
    if whole in computation:
        shape = members(computation[whole].shape)[int(index)]
        computation[operand] = Instruction(
            operand, shape, "get-tuple-element", (whole,), f"%{whole}", f", index={index}", False
        )


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"unbalanced parentheses: {text[:80]}")


def attribute(instruction: Instruction, name: str) -> str | None:
    """The computation that an attribute names: calls=%f → f."""
    match = re.search(rf"\b{name}=%([\w.\-]+)", instruction.attributes)
    return match[1] if match else None


def _count_runs(
    computations: dict[str, dict[str, Instruction]], entry: str
) -> tuple[dict[str, int], frozenset[str], frozenset[str], int]:
    """runs, inner, beside and unknown_loops of a Program."""
    runs: dict[str, int] = collections.defaultdict(int)
    inner: set[str] = set()
    beside: set[str] = set()
    unknown = 0

    def visit(name: str, times: int, within: bool = False, at_once: bool = False) -> None:
        nonlocal unknown
        runs[name] += times
        if within:
            inner.add(name)
        if at_once:
            beside.add(name)
        for instruction in computations[name].values():
            if instruction.opcode == "while":
                trips = _trip_count(instruction, computations, name)
                unknown += trips is None
                body = attribute(instruction, "body")
                if body:
                    visit(body, times * (1 if trips is None else trips), within, at_once)
            elif instruction.opcode in ("fusion", "call", "async-start", "custom-call"):
                deeper = within or instruction.opcode != "call"
                beside_others = at_once or instruction.opcode == "async-start"
                for callee in called(instruction):
                    if callee in computations:
                        visit(callee, times, deeper, beside_others)
            elif instruction.opcode == "conditional":
                # One branch runs; the first stands for all.
                branch = attribute(instruction, "true_computation") or re.search(
                    r"branch_computations=\{%([\w.\-]+)", instruction.attributes
                )
                if branch:
                    taken = branch if isinstance(branch, str) else branch[1]
                    visit(taken, times, within, at_once)

    visit(entry, 1)
    return dict(runs), frozenset(inner), frozenset(beside), unknown


def called(instruction: Instruction) -> list[str]:
    """The computations that an instruction hands its operands to."""
    callee = attribute(instruction, "calls")
    if callee is None and instruction.opcode == "call":
        callee = attribute(instruction, "to_apply")
    listed = re.search(r"\bcalled_computations=\{([^}]*)\}", instruction.attributes)
    return [callee] if callee else _NAME.findall(listed[1]) if listed else []


def _trip_count(
    loop: Instruction, computations: dict[str, dict[str, Instruction]], where: str
) -> int | None:
    """Of `for i = start; i < end; i += step`, which is what lax.scan becomes; the compiler may put
    several of its steps into one."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    condition = computations.get(attribute(loop, "condition") or "", {})
    root = next((i for i in condition.values() if i.is_root), None)
    if root is None or root.opcode != "compare" or "direction=LT" not in root.attributes:
        return None
    counter, end = (condition[operand] for operand in root.operands)
    limit, index = _constant(end), _member(counter)
    body = computations.get(attribute(loop, "body") or "", {})
    next_values = next((i for i in body.values() if i.is_root), None)
    if limit is None or index is None or next_values is None or next_values.opcode != "tuple":
        return None
    step = _added(body, body[next_values.operands[index]], index)
    if not step or step < 0:
        return None
    values = computations[where].get(loop.operands[0])
    if values is None or values.opcode != "tuple":
        return None
    first = _copied(computations[where], values.operands[index])
    start = _constant(first) if first is not None else None
    return None if start is None else max(-(-(limit - start) // step), 0)


def _added(body: dict[str, Instruction], value: Instruction, index: int) -> int | None:
    """What a loop's body adds to member `index` of its state; None where `value` is no such sum."""
    source = _copied(body, value.name)
    if source is None or _member(source) == index:
        return None if source is None else 0
    if source.opcode != "add":
        return None
    parts = [body[name] for name in source.operands]
    constants = [constant for part in parts if (constant := _constant(part)) is not None]
    others = [part for part in parts if _constant(part) is None]
    before = _added(body, others[0], index) if len(others) == 1 else None
    return None if before is None else before + sum(constants)


def _copied(computation: dict[str, Instruction], name: str) -> Instruction | None:
    """What a value was before it was copied."""
    source = computation.get(name)
    while source is not None and source.opcode in ("copy", "bitcast"):
        source = computation.get(source.operands[0])
    return source


def _member(instruction: Instruction) -> int | None:
    """Which member of a tuple it is."""
    index = re.search(r"index=(\d+)", instruction.attributes)
    return int(index[1]) if instruction.opcode == "get-tuple-element" and index else None


def _constant(instruction: Instruction) -> int | None:
    match = re.fullmatch(r"-?\d+", instruction.arguments)
    return int(match[0]) if instruction.opcode == "constant" and match else None
