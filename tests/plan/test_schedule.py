"""What a chip does in a step: pieces as the TPU compiler writes them, and whole programs."""

import dataclasses
from pathlib import Path

import pytest

from chopjax.plan.hlo import parse
from chopjax.plan.schedule import Work, work
from chopjax.plan.topology import CHIPS

# One that multiplies and moves one of each in a second.
UNIT = dataclasses.replace(CHIPS["v5e"], flops=1.0, hbm_bandwidth=1.0)
V5E = CHIPS["v5e"]


def done(*lines: str, others: str = "") -> Work:
    body = "\n".join(f"  {line}" for line in lines)
    text = f"HloModule f, is_scheduled=true\n\n{others}\nENTRY %main () -> f32[8] {{\n{body}\n}}\n"
    return work(parse(text), UNIT, tile_share=1.0)


def seconds(*lines: str, others: str = "") -> float:
    return done(*lines, others=others).seconds


A = "%a = f32[64,4]{1,0} parameter(0)"
B = "%b = f32[4,64]{1,0} parameter(1)"


def test_each_operation_takes_the_longer_of_its_products_and_its_bytes():
    product = "%c = f32[64,64]{1,0} convolution(%a, %b), dim_labels=bf_io->bf"
    near = product.replace("64,64]{1,0}", "64,64]{1,0:T(8,128)S(1)}")
    moves = "%n = f32[64,4]{1,0} negate(%a)"
    assert seconds(A, B, product) == 2 * 64 * 64 * 4  # 2,048 + 16,384 bytes
    assert seconds(A, B, moves) == 2 * 64 * 4 * 4
    # Not the longer of the sums.
    assert seconds(A, B, near, moves) == 2 * 64 * 64 * 4 + 2 * 64 * 4 * 4
    long = B.replace("4,64", "4,1").replace("%b", "%v")
    vector = "%c = f32[64,1]{1,0} convolution(%a, %v), dim_labels=bf_io->bf"
    assert seconds(A, long, vector) == (64 * 4 + 4 + 64) * 4


def test_what_is_started_ahead_and_collectives_are_no_operations():
    moves = "%n = f32[64,4]{1,0} negate(%a)"
    ahead = (
        "%s = (f32[64,4]{1,0:T(8,128)S(1)}, f32[64,4]{1,0}, u32[]{:S(2)}) copy-start(%a)",
        "%d = f32[64,4]{1,0:T(8,128)S(1)} copy-done(%s)",
    )
    gather = "%g = f32[256,4]{1,0} all-gather(%a), channel_id=1, replica_groups={{0,1,2,3}}"
    assert seconds(A, *ahead, gather, moves) == seconds(A, moves) > 0


REDUCE_SCATTER = """%all-reduce-scatter.1 (p: f32[64,4]) -> f32[16,4] {
  %p = f32[64,4]{1,0} parameter(0)
  %r = f32[64,4]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %i = s32[] constant(0)
  ROOT %s = f32[16,4]{1,0} dynamic-slice(%r, %i, %i), dynamic_slice_sizes={16,4}
}
"""
# libtpu 0.0.52 on v5e: a gather begins, goes on within a fusion that negates, and ends.
SPREAD = """%first (p: f32[16,4]) -> (f32[16,4], f32[64,4], u32[]) {
  %p = f32[16,4]{1,0:T(8,128)S(1)} parameter(0)
  %g = f32[64,4]{1,0} all-gather(%p), channel_id=1, replica_groups={{0,1,2,3}}, \
frontend_attributes={chain_id="0"}
  ROOT %c = (f32[16,4]{1,0:T(8,128)S(1)}, f32[64,4]{1,0}, u32[]{:S(2)}) custom-call(%g), \
custom_call_target="AsyncCollectiveStart"
}

%between (p: f32[16,4], g: f32[64,4], u: u32[], a: f32[64,4]) -> (f32[64,4], f32[16,4], f32[64,4], \
f32[64,4], u32[]) {
  %p = f32[16,4]{1,0:T(8,128)S(1)} parameter(0)
  %g = f32[64,4]{1,0} parameter(1)
  %u = u32[]{:S(2)} parameter(2)
  %a = f32[64,4]{1,0} parameter(3)
  %n = f32[64,4]{1,0} negate(%a)
  %h = f32[64,4]{1,0} all-gather(%p), channel_id=1, replica_groups={{0,1,2,3}}, \
frontend_attributes={chain_id="0"}
  ROOT %t = (f32[64,4]{1,0}, f32[16,4]{1,0:T(8,128)S(1)}, f32[64,4]{1,0}, f32[64,4]{1,0}, \
u32[]{:S(2)}) tuple(%n, %p, %g, %h, %u)
}

%last (p: f32[16,4], g: f32[64,4], u: u32[]) -> f32[64,4] {
  %p = f32[16,4]{1,0:T(8,128)S(1)} parameter(0)
  %g = f32[64,4]{1,0} parameter(1)
  %u = u32[]{:S(2)} parameter(2)
  %h = f32[64,4]{1,0} all-gather(%p), channel_id=1, replica_groups={{0,1,2,3}}, \
frontend_attributes={chain_id="0"}
  ROOT %c = f32[64,4]{1,0} custom-call(%p, %g, %h, %u), custom_call_target="AsyncCollectiveDone"
}
"""
SPREAD_ENTRY = """%a = f32[64,4]{1,0} parameter(0)
  %b = f32[16,4]{1,0:T(8,128)S(1)} parameter(1)
  %s = (f32[16,4]{1,0:T(8,128)S(1)}, f32[64,4]{1,0}, u32[]{:S(2)}) fusion(%b), kind=kCustom, \
output_to_operand_aliasing={{0}: (0, {})}, calls=%first
  %f = (f32[64,4]{1,0}, f32[16,4]{1,0:T(8,128)S(1)}, f32[64,4]{1,0}, f32[64,4]{1,0}, \
u32[]{:S(2)}) fusion(%s#0, %s#1, %s#2, %a), kind=kOutput, output_to_operand_aliasing={{1}: \
(0, {}), {2}: (1, {}), {3}: (1, {}), {4}: (2, {})}, calls=%between
  %d = f32[64,4]{1,0} fusion(%f#1, %f#3, %f#4), kind=kCustom, \
output_to_operand_aliasing={{}: (1, {})}, calls=%last"""


def test_fusions_that_are_collectives_are_no_operations():
    scattered = "%f = f32[16,4]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1"
    assert seconds(A, scattered, others=REDUCE_SCATTER) == 0
    # Only what is negated beside it.
    assert done(SPREAD_ENTRY, others=SPREAD).seconds == 2 * 64 * 4 * 4


def test_a_collective_spread_over_fusions_moves_its_bytes_once():
    assert done(SPREAD_ENTRY, others=SPREAD).hbm_bytes == (64 * 4 + 2 * 64 * 4) * 4


MIB = 2**20


@pytest.mark.parametrize(("version", "kept"), [("0.10", 8), ("0.12", 5)])
def test_a_whole_program_as_two_versions_write_it(version: str, kept: int):
    """programs/, as test_hlo.py has them: six layers of a product [4096, 2048] x [2048, 2048] a
    chip forward and two backward. Arrays of 16 MiB are written for each layer or read back."""
    read = parse((Path(__file__).parent / f"programs/jax_{version}.txt").read_text())
    found = work(read, V5E, 1.0)
    product = 2 * 4096 * 2048 * 2048
    assert found.flops == 6 * 3 * product
    assert found.unknown_kernels == []
    assert found.hbm_bytes == pytest.approx((6 * (2 * 2 + kept * 16) + 16 + 2 * 12) * MIB, abs=1024)
    # Products hide what they read and write, and the copy of x hides. Alone are a layer's slice of
    # the weights, each way, and its state kept, and in the end what updates the weights.
    alone = (6 * (2 + 2 + 16) + 24) * MIB
    assert found.seconds == pytest.approx(
        found.flops / V5E.flops + alone / V5E.hbm_bandwidth, rel=1e-5
    )
