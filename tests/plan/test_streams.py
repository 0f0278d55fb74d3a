"""Collectives beside operations: by hand, and in a real program for GPUs."""

from pathlib import Path

import pytest

from chopjax.plan.collectives import collect, one_collective
from chopjax.plan.gpus import parse_gpus
from chopjax.plan.hlo import Instruction, parse
from chopjax.plan.schedule import operation, work
from chopjax.plan.streams import hidden_shares

MIB = 2**20
START = (
    "all-gather-start(%a), channel_id=1, replica_groups={{0,1}}, dimensions={0}, "
    'backend_config={"collective_backend_config":{"is_sync":SYNC}}'
)


def shares_of(*lines: str, others: str = "") -> tuple[dict[str, float], float]:
    """By name. Every negate takes a second, every collective two."""
    body = "\n".join(f"  {line}" for line in lines)
    read = parse(f"HloModule f\n\n{others}\nENTRY %main (a: f32[8]) -> f32[8] {{\n{body}\n}}\n")
    shares, seconds = hidden_shares(
        read, lambda _, one: float(one.opcode == "negate"), lambda _, one: 2.0
    )
    return {name: share for (_, name), share in shares.items()}, seconds


def started(name: str, sync: str = "false") -> str:
    return f"%{name} = (f32[8]{{0}}, f32[16]{{0}}) {START.replace('SYNC', sync)}"


A = "%a = f32[8]{0} parameter(0)"


def negated(name: str) -> str:
    return f"%{name} = f32[8]{{0}} negate(%a)"


def done(name: str, of: str) -> str:
    return f"%{name} = f32[16]{{0}} all-gather-done(%{of})"


def test_what_lies_between_start_and_end_hides_it():
    assert shares_of(A, started("s"), done("d", "s")) == ({"s": 0.0}, 2.0)
    assert shares_of(A, started("s"), negated("n"), done("d", "s")) == ({"s": 0.5}, 2.0)
    three = [negated(name) for name in "nmk"]
    assert shares_of(A, started("s"), *three, done("d", "s")) == ({"s": 1.0}, 3.0)


def test_the_second_waits_for_the_first():
    lines = A, started("s"), started("t"), *(negated(n) for n in "nmk"), done("d", "s")
    assert shares_of(*lines, done("e", "t")) == ({"s": 1.0, "t": 0.5}, 4.0)


def test_what_is_synchronous_hides_nothing():
    lines = A, started("s", "true"), negated("n"), done("d", "s")
    assert shares_of(*lines) == ({"s": 0.0}, 3.0)
    reduced = "%r = f32[8]{0} all-reduce(%a), channel_id=1, replica_groups={{0,1}}"
    assert shares_of(A, negated("n"), reduced) == ({"r": 0.0}, 3.0)


def test_a_reduce_scatter_is_within_an_async_start():
    inside = """%within (p: f32[8]) -> f32[4] {
  %p = f32[8]{0} parameter(0)
  ROOT %r = f32[4]{0} reduce-scatter(%p), channel_id=2, replica_groups={{0,1}}, to_apply=%add
}
"""
    start = "%s = ((f32[8]{0}), f32[4]{0}) async-start(%a), calls=%within"
    end = "%d = f32[4]{0} async-done(%s)"
    assert shares_of(A, start, negated("n"), end, others=inside) == ({"r": 0.5}, 2.0)


def test_a_whole_program():
    """programs/h100.txt: jax 0.10.2 for four GPUs, without metadata and most of backend_config.

    Six layers on x [1, 1024, 2048] a GPU, weights [6, 2048, 2048] in quarters, bfloat16: q = x @ w,
    causal attention of 16 heads with q for all three, tanh(… @ w); and w - 0.1 * gradient.
    """
    read = parse((Path(__file__).parent / "programs/h100.txt").read_text())
    assert read.unknown_loops == 0
    assert sorted(set(read.runs.values())) == [1, 6]
    cluster, mesh_shape = parse_gpus("h100:4"), {"fsdp": 4}
    assert cluster is not None

    def seconds(computation: str, one: Instruction) -> float:
        return operation(read, computation, one, cluster.chip, 1.0)[2]

    def on_wires(computation: str, one: Instruction) -> float:
        axes, _, wire = one_collective(one, mesh_shape)
        return cluster.seconds(wire, axes, mesh_shape)

    shares, step = hidden_shares(read, seconds, on_wires)
    rows = {row.kind: row for row in collect(read, mesh_shape, shares)}
    # Weights both ways, gradients once.
    assert (rows["all-gather"].count, rows["all-gather"].payload) == (12, 12 * 8 * MIB)
    assert (rows["reduce-scatter"].count, rows["reduce-scatter"].payload) == (6, 6 * 8 * MIB)
    done = work(read, cluster.chip, 1.0)
    scores = 16 * 1024 * 1025 // 2
    assert done.flops == 6 * 2 * (6 * 1024 * 2048 * 2048 + (2 + 5) * scores * 128)
    assert done.unknown_kernels == []
    # The step is what the operations take and what they wait.
    waited = sum((row.wire - row.hidden) / cluster.chip.link_bandwidth for row in rows.values())
    assert 0 < waited < sum(row.wire for row in rows.values()) / cluster.chip.link_bandwidth
    assert step == pytest.approx(done.seconds + waited)
