"""The collectives of a compiled step: by kind and mesh axes, bytes on the wire, hidden or not."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from chopjax.plan.hlo import Instruction, Program, array_bytes, members

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collectives:
    """All collectives of one kind over the same mesh axes, in one step.

    payload: bytes of the gathered, reduced or moved arrays, whole, for one group. wire: bytes that
    each chip sends: for a group of g, (g-1)/g of the payload, twice that for an all-reduce.
    hidden: the part of `wire` whose collectives run beside other work.
    """

    kind: str
    axes: tuple[str, ...]
    count: int
    payload: int
    wire: int
    hidden: int


def collect(
    program: Program,
    mesh_shape: Mapping[str, int],
    hidden_shares: Mapping[tuple[str, str], float] | None = None,
) -> list[Collectives]:
    """Largest first. mesh_shape: axis → size, outermost first, as the devices are numbered.

    hidden_shares: (computation, instruction) → how much of a collective runs beside other work;
    None: all of what the program starts ahead.
    """
    sums: dict[tuple[str, tuple[str, ...]], list[int]] = collections.defaultdict(lambda: [0] * 4)
    seen: set[tuple[str, str]] = set()
    for computation, instruction, runs in program.instructions():
        kind = instruction.opcode.removesuffix("-start")
        between = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
        if kind == "send" and between:
            kind = between[1].lower().replace("_", "-")
            payload, wire = _between_slices(instruction, kind, mesh_shape["slice"])
            # A send and its send-done: other work runs meanwhile.
            for i, amount in enumerate((1, payload, wire, wire)):
                sums[kind, ("slice",)][i] += amount * runs
            continue
        if kind not in KINDS:
            continue
        # The TPU compiler spreads one collective over several fusions that other work runs in.
        # Each holds a copy of it, with the same channel in the same chain.
        chain = re.search(r'chain_id="(\w+)"', instruction.attributes)
        channel = re.search(r"channel_id=(\d+)", instruction.attributes)
        if chain and channel:
            if (chain[1], channel[1]) in seen:
                continue
            seen.add((chain[1], channel[1]))
        # On SparseCores: a custom call within an async-start.
        hidden: float = (
            bool(chain) or instruction.opcode.endswith("-start") or computation in program.beside
        )
        if hidden_shares is not None:
            hidden = hidden_shares.get((computation, instruction.name), 0.0)
        # An all-reduce of which each device keeps its slice, fused: a reduce-scatter.
        if computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        axes, payload, wire = one_collective(instruction, mesh_shape, kind)
        entry = sums[kind, axes]
        for i, amount in enumerate((1, payload, wire, round(wire * hidden))):
            entry[i] += amount * runs
    rows = [Collectives(kind, axes, *values) for (kind, axes), values in sums.items()]
    return sorted(rows, key=lambda row: -row.wire)


def one_collective(
    instruction: Instruction, mesh_shape: Mapping[str, int], kind: str | None = None
) -> tuple[tuple[str, ...], int, int]:
    """Of one instruction, each time that it runs: axes, payload and wire, as in Collectives.

    kind: what it is, where its opcode does not say so.
    """
    kind = kind or instruction.opcode.removesuffix("-start")
    group = _group(instruction, mesh_shape)
    payload, wire = _bytes(instruction, kind, len(group))
    return _axes(group, mesh_shape), payload, wire


def _bytes(instruction: Instruction, kind: str, group: int) -> tuple[int, int]:
    shape = instruction.shape
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):
        shape = members(shape)[1]  # (operands, results, …)
    payload = array_bytes(shape)
    if instruction.opcode.startswith("reduce-scatter"):
        payload *= group  # its result is one part
    if kind in ("collective-permute", "collective-broadcast"):
        return payload, payload
    share = (group - 1) / group
    return payload, round(payload * share * (2 if kind == "all-reduce" else 1))


def _between_slices(instruction: Instruction, kind: str, slices: int) -> tuple[int, int]:
    """Payload and wire of a transfer that the hosts carry out over the data-centre network.

    It is written as a send of what this chip has: the first of (array, context, token).
    """
    payload = array_bytes(members(instruction.shape)[0])
    if kind == "all-gather":
        payload *= slices
    share = (slices - 1) / slices
    return payload, round(payload * share * (2 if kind == "all-reduce" else 1))


def _group(instruction: Instruction, mesh_shape: Mapping[str, int]) -> list[int]:
    """The devices of the first group; in HLO's three spellings."""
    text = instruction.attributes
    every = list(range(math.prod(mesh_shape.values())))
    pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}(?:,\{(\d+),(\d+)\})*", text)
    if pairs:
        moves = re.findall(r"\{(\d+),(\d+)\}", text[pairs.start() : pairs.end()])
        return sorted({int(d) for move in moves if move[0] != move[1] for d in move}) or [0]
    match = re.search(r"replica_groups=\{\{([\d,]+)\}", text)
    if match:
        return [int(d) for d in match[1].split(",")]
    match = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if match:
        devices = np.arange(len(every)).reshape([int(n) for n in match[3].split(",")])
        if match[4]:
            devices = devices.transpose([int(n) for n in match[4].split(",")])
        return [int(d) for d in devices.reshape(int(match[1]), int(match[2]))[0]]
    match = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text)
    if match:
        sizes = {axis: int(n) for axis, n in re.findall(r"'([\w:()]+)'=(\d+)", match[1])}
        kept = re.findall(r"'([\w:()]+)'", match[2])
        devices = np.arange(len(every)).reshape(list(sizes.values()))
        index = tuple(slice(None) if axis in kept else 0 for axis in sizes)
        return [int(d) for d in devices[index].ravel()]
    return every


def _axes(group: list[int], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ."""
    sizes = tuple(mesh_shape.values())
    places = np.array(np.unravel_index(group, sizes))
    return tuple(
        axis for axis, row in zip(mesh_shape, places, strict=True) if len(set(row.tolist())) > 1
    )
