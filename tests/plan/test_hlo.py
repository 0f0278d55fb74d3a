"""Reading compiled programs: pieces as the TPU compiler writes them, and real ones, whole."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from chopjax.plan.collectives import Collectives, collect
from chopjax.plan.hlo import array_bytes, members, parse
from chopjax.plan.traffic import hbm_bytes


def program(entry: str, others: str = "") -> str:
    header = "HloModule jit_f, is_scheduled=true"
    return f"{header}\n\n{others}\nENTRY %main (a: f32[8]) -> f32[8] {{\n{entry}\n}}\n"


def test_bytes_of_shapes():
    assert array_bytes("bf16[2,3]{1,0:T(8,128)(2,1)}") == 12
    assert array_bytes("(f32[4]{0}, /*index=1*/(s32[], pred[8]{0}))") == 28
    assert array_bytes("(f32[4]{0:T(128)S(1)}, f32[2]{0})", only_hbm=True) == 8
    assert members("(f32[2]{0:T(2)}, (bf16[2,3]{1,0}, s32[]), /*index=2*/u32[])") == [
        "f32[2]{0:T(2)}",
        "(bf16[2,3]{1,0}, s32[])",
        "u32[]",
    ]
    assert members("f32[2,3]{1,0}") == ["f32[2,3]{1,0}"]


LOOP = """%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %reduced = f32[8]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  %n = s32[] get-tuple-element(%p), index=0
  %near = s32[]{:S(6)} copy(%n)
  %one = s32[] constant(1)
  %next = s32[] add(%near, %one)
  ROOT %t = (s32[], f32[8]{0}) tuple(%next, %reduced)
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]{0}) parameter(0)
  %limit = s32[]{:T(128)} constant(7)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}
"""
LOOP_ENTRY = """  %a = f32[8]{0} parameter(0)
  %start = s32[] constant(2)
  %t = (s32[], f32[8]{0}) tuple(%start, %a)
  %w = (s32[], f32[8]{0}) while(%t), condition=%condition, body=%body
  ROOT %r = f32[8]{0} get-tuple-element(%w), index=1"""


def test_loops_count_their_trips():
    read = parse(program(LOOP_ENTRY, LOOP))
    assert read.entry == "main"
    assert read.runs == {"main": 1, "body": 5}
    assert read.unknown_loops == 0
    # 32 bytes, 5 times, both ways of an all-reduce over 2.
    (row,) = collect(read, {"data": 2, "tensor": 2})
    assert row == Collectives("all-reduce", ("tensor",), 5, 160, 160, 0)


def test_both_spellings_of_a_tuple_s_member():
    """jax 0.12 writes %p#1 for get-tuple-element(%p), index=1."""
    newer = LOOP.replace("  %x = f32[8]{0} get-tuple-element(%p), index=1\n", "")
    newer = newer.replace("  %n = s32[] get-tuple-element(%p), index=0\n", "")
    newer = newer.replace("all-reduce(%x)", "all-reduce(%p#1)").replace("copy(%n)", "copy(%p#0)")
    newer = newer.replace("  %i = s32[] get-tuple-element(%p), index=0\n", "")
    newer = newer.replace("compare(%i, ", "compare(%p#0, ")
    older = parse(program(LOOP_ENTRY, LOOP))
    read = parse(program(LOOP_ENTRY, newer))
    assert (read.runs, read.unknown_loops) == (older.runs, 0)
    assert collect(read, {"data": 2, "tensor": 2}) == collect(older, {"data": 2, "tensor": 2})
    member = read.computations["body"]["p#1"]
    assert (member.opcode, member.shape) == ("get-tuple-element", "f32[8]{0}")


def test_members_of_members():
    entry = """  %a = (f32[2]{0}, (s32[], f32[8]{0:T(8)S(1)})) parameter(0)
  ROOT %n = f32[8]{0} negate(%a#1#1)"""
    read = parse(program(entry))
    assert read.computations["main"]["a#1#1"].shape == "f32[8]{0:T(8)S(1)}"
    assert hbm_bytes(read) == 32


@pytest.mark.parametrize(
    ("old", "new", "trips"),
    [
        # The compiler puts two steps into one, as it does where a product waits for its parts.
        ("%one = s32[] constant(1)", "%one = s32[] constant(2)", 3),
        ("%next = ", "%m = s32[] add(%one, %near)\n  %next = s32[] add(%m, %one)\n  %n1 = ", 3),
        ("%limit = s32[]{:T(128)} constant(7)", "%limit = s32[]{:T(128)} constant(1)", 0),
    ],
)
def test_loops_of_other_steps(old: str, new: str, trips: int):
    assert old in LOOP
    read = parse(program(LOOP_ENTRY, LOOP.replace(old, new)))
    assert (read.runs["body"], read.unknown_loops) == (trips, 0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("direction=LT", "direction=NE"),
        ("add(%near, %one)", "multiply(%near, %one)"),
        ("add(%near, %one)", "add(%near, %near)"),
        ("%one = s32[] constant(1)", "%one = s32[] constant(0)"),
        ("%limit = s32[]{:T(128)} constant(7)", "%limit = s32[] get-tuple-element(%p), index=0"),
        ("tuple(%start, %a)", "tuple(%a, %a)"),
    ],
)
def test_a_loop_of_unknown_length_counts_once_and_is_told(old: str, new: str):
    text = program(LOOP_ENTRY, LOOP)
    assert old in text
    read = parse(text.replace(old, new))
    assert (read.runs["body"], read.unknown_loops) == (1, 1)


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", ("tensor",)),
        ("{{0,2,4,6},{1,3,5,7}}", ("fsdp",)),
        ("[2,4]<=[4,2]T(1,0)", ("fsdp",)),
        ("[4,2]<=[8]", ("tensor",)),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", ("fsdp",)),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", ("tensor",)),
        ("{}", ("fsdp", "tensor")),
    ],
)
def test_groups_in_every_spelling(groups: str, axes: tuple[str, ...]):
    line = f"  ROOT %g = bf16[64]{{0}} all-gather(%a), channel_id=1, replica_groups={groups}, x"
    (row,) = collect(parse(program(line)), {"data": 1, "fsdp": 4, "tensor": 2})
    size = {("tensor",): 2, ("fsdp",): 4, ("fsdp", "tensor"): 8}[axes]
    assert (row.axes, row.payload, row.wire) == (axes, 128, 128 * (size - 1) // size)


@pytest.mark.parametrize(
    ("line", "kind", "payload", "wire", "hidden"),
    [
        # An asynchronous gather: (operand, result, …).
        (
            "(bf16[16]{0}, bf16[64]{0}, u32[]) all-gather-start(%a), replica_groups={{0,1,2,3}}",
            "all-gather", 128, 96, 96,
        ),
        (
            "bf16[16]{0} reduce-scatter(%a), replica_groups={{0,1,2,3}}",
            "reduce-scatter", 128, 96, 0,
        ),
        ("f32[16]{0} all-to-all(%a), replica_groups={{0,1,2,3}}", "all-to-all", 64, 48, 0),
        (
            "(f32[16]{0}, f32[16]{0}) collective-permute-start(%a), source_target_pairs={{0,1}}",
            "collective-permute", 64, 64, 64,
        ),
    ],
)  # fmt: skip
def test_kinds(line: str, kind: str, payload: int, wire: int, hidden: int):
    (row,) = collect(parse(program(f"  ROOT %c = {line}")), {"fsdp": 4})
    assert (row.kind, row.payload, row.wire, row.hidden) == (kind, payload, wire, hidden)


@pytest.mark.parametrize(
    ("kind", "payload", "wire"),
    [("ALL_REDUCE", 64, 96), ("ALL_GATHER", 256, 192), ("REDUCE_SCATTER", 64, 48)],
)
def test_between_slices_the_hosts_carry(kind: str, payload: int, wire: int):
    """As the TPU compiler writes it: a send to the runtime that knows the other slices."""
    line = (
        "(f32[16]{0}, u32[]{:S(2)}, token[]) send(%a, %token), channel_id=3, is_host_transfer=true,"
        f' frontend_attributes={{_xla_megascale_transfer_type="{kind}"}}'
    )
    found = collect(parse(program(f"  %c = {line}")), {"slice": 4, "fsdp": 4})
    name = kind.lower().replace("_", "-")
    assert found == [Collectives(name, ("slice",), 1, payload, wire, wire)]


def test_a_collective_spread_over_fusions_counts_once_and_is_hidden():
    piece = (
        "%f{n} (p: bf16[16]) -> bf16[64] {{\n"
        "  %p = bf16[16]{{0}} parameter(0)\n"
        "  ROOT %g{n} = bf16[64]{{0}} all-gather(%p), channel_id=9, replica_groups={{{{0,1,2,3}}}},"
        ' frontend_attributes={{chain_id="0"}}\n}}\n'
    )
    calls = "\n".join(
        f"  %c{n} = bf16[64]{{0}} fusion(%a), kind=kCustom, calls=%f{n}" for n in range(3)
    )
    others = "\n".join(piece.format(n=n) for n in range(3))
    (row,) = collect(parse(program(calls, others)), {"fsdp": 4})
    assert (row.count, row.wire, row.hidden) == (1, 96, 96)


def test_a_fused_all_reduce_and_slice_is_a_reduce_scatter():
    inner = """%all-reduce-scatter.1 (p: bf16[64]) -> bf16[16] {
  %p = bf16[64]{0} parameter(0)
  %r = bf16[64]{0} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %s = bf16[16]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={16}
}
"""
    call = "  ROOT %c = bf16[16]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1"
    (row,) = collect(parse(program(call, inner)), {"fsdp": 4})
    assert (row.kind, row.wire) == ("reduce-scatter", 96)


TRAFFIC = """%slicing (p: f32[10,8], i: s32[]) -> f32[1,8] {
  %p = f32[10,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %s = f32[1,8]{1,0} dynamic-slice(%p, %i), dynamic_slice_sizes={1,8}
}

%updating (p: f32[10,8], u: f32[1,8], i: s32[]) -> f32[10,8] {
  %p = f32[10,8]{1,0} parameter(0)
  %u = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %d = f32[10,8]{1,0} dynamic-update-slice(%p, %u, %i)
}
"""


def test_traffic_counts_slices_and_updates_by_their_size():
    def traffic(entry: str) -> int:
        return hbm_bytes(parse(program(entry, TRAFFIC)))

    a = "  %a = f32[10,8]{1,0} parameter(0)\n"
    near = "  %near = f32[1,8]{1,0:S(1)} parameter(1)\n"
    assert traffic(a + "  ROOT %n = f32[10,8]{1,0} negate(%a)") == 640
    assert traffic(a + "  ROOT %n = f32[10,8]{1,0:T(8,128)S(1)} negate(%a)") == 320
    sliced = "  ROOT %f = f32[1,8]{1,0} fusion(%a, %i), kind=kLoop, calls=%slicing"
    assert traffic(a + sliced) == 64
    updated = "  ROOT %f = f32[10,8]{1,0} fusion(%a, %near, %i), kind=kLoop, calls=%updating"
    assert traffic(a + near + updated) == 32
    assert traffic(a + "  ROOT %t = (f32[10,8]{1,0}) tuple(%a)") == 0


DEEP = """%part (p: f32[10,8], i: s32[]) -> f32[8] {
  %p = f32[10,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %s = f32[1,8]{1,0} dynamic-slice(%p, %i), dynamic_slice_sizes={1,8}
  ROOT %b = f32[8]{0} bitcast(%s)
}

%outer (p: f32[10,8], i: s32[], q: f32[8]) -> f32[8] {
  %p = f32[10,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %q = f32[8]{0} parameter(2)
  %f = f32[8]{0} fusion(%p, %i), kind=kLoop, calls=%part
  ROOT %m = f32[8]{0} multiply(%f, %q)
}

%both (p: f32[10,8], u: f32[1,8], i: s32[]) -> (f32[10,8], f32[8]) {
  %p = f32[10,8]{1,0} parameter(0)
  %u = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %d = f32[10,8]{1,0} dynamic-update-slice(%p, %u, %i)
  %b = f32[8]{0} bitcast(%u)
  ROOT %t = (f32[10,8]{1,0}, f32[8]{0}) tuple(%d, %b)
}

%half (p: f32[10,8]) -> f32[5,8] {
  %p = f32[10,8]{1,0} parameter(0)
  %n = f32[10,8]{1,0} negate(%p)
  ROOT %s = f32[5,8]{1,0} slice(%n), slice={[0:5], [0:8]}
}

%start (p: f32[10,8]) -> f32[5,8] {
  %p = f32[10,8]{1,0} parameter(0)
  ROOT %s = f32[5,8]{1,0:S(1)} slice(%p), slice={[0:5], [0:8]}
}
"""


@pytest.mark.parametrize(
    ("line", "moved"),
    [
        # A layer's 32 bytes of the stack, 32 beside them, 32 written.
        ("f32[8]{0} fusion(%a, %i, %q), kind=kLoop, calls=%outer", 96),
        # The new part of the stack, and the same once more; read from near.
        ("(f32[10,8]{1,0}, f32[8]{0}) fusion(%a, %u, %i), kind=kLoop, calls=%both", 64),
        # What is not asked for is not read.
        ("f32[5,8]{1,0} fusion(%a), kind=kLoop, calls=%half", 320),
        # A slice that is fetched ahead, to near memory.
        ("((f32[10,8]{1,0}), f32[5,8]{1,0:S(1)}, s32[]) async-start(%a), calls=%start", 160),
        ('f32[10,8]{1,0} custom-call(), custom_call_target="AllocateBuffer"', 0),
        ('f32[10,8]{1,0} custom-call(%a), custom_call_target="tpu_custom_call"', 640),
    ],
)
def test_traffic_looks_into_fusions(line: str, moved: int):
    operands = """  %a = f32[10,8]{1,0} parameter(0)
  %q = f32[8]{0} parameter(1)
  %u = f32[1,8]{1,0:S(1)} parameter(2)
  %i = s32[]{:S(6)} parameter(3)
"""
    assert hbm_bytes(parse(program(f"{operands}  ROOT %r = {line}", DEEP))) == moved


OFFLOADED = """%called (p: bf16[64]) -> bf16[16] {
  %p = bf16[64]{0} parameter(0)
  ROOT %r = bf16[16]{0} reduce-scatter(%p), channel_id=2, replica_groups={{0,1,2,3}}, to_apply=%add
}, execution_thread="sparsecore"

%async (p: bf16[64]) -> bf16[16] {
  %p = bf16[64]{0} parameter(0)
  ROOT %c = bf16[16]{0} custom-call(%p), custom_call_target="x", called_computations={%called}
}, execution_thread="sparsecore"
"""


def test_collectives_on_sparse_cores_are_there_and_hidden():
    start = "((bf16[64]{0}), bf16[16]{0}, u32[]{:S(8)}) async-start(%a)"
    entry = f"""  %a = bf16[64]{{0}} parameter(0)
  %s = {start}, async_execution_thread="sparsecore", calls=%async
  ROOT %d = bf16[16]{{0}} async-done(%s)"""
    read = parse(program(entry, OFFLOADED))
    assert collect(read, {"fsdp": 4}) == [Collectives("reduce-scatter", ("fsdp",), 1, 128, 96, 96)]
    assert hbm_bytes(read) == 128 + 32  # once, and not once more within


MIB = 2**20


@pytest.mark.parametrize(("version", "written", "read_back"), [("0.10", 3, 5), ("0.12", 2, 3)])
def test_a_whole_program_as_two_versions_write_it(version: str, written: int, read_back: int):
    """programs/: libtpu 0.0.52 on four chips of v5e, without metadata and backend_config. Six
    layers tanh(x @ w) over x [4096, 2048] a chip and w [6, 2048, 2048] in quarters, bfloat16, and
    w - 0.1 * gradient. The newer jax keeps fewer arrays of a layer for its backward pass.
    """
    read = parse((Path(__file__).parent / f"programs/jax_{version}.txt").read_text())
    assert read.unknown_loops == 0
    assert sorted(set(read.runs.values())) == [1, 6]
    found = {row.kind: row for row in collect(read, {"fsdp": 4})}
    # Each layer's weights twice; the second time beside the products of the layer before.
    assert (found["all-gather"].count, found["all-gather"].payload) == (12, 12 * 8 * MIB)
    assert found["all-gather"].hidden == found["all-gather"].wire / 2
    assert found["reduce-scatter"].count == 6
    assert found["reduce-scatter"].payload == pytest.approx(6 * 8 * MIB, rel=0.04)
    # Of a layer: its quarter of the weights twice, what is kept of it for the backward pass, and
    # each time that a product reads some of that. Besides: x in, w in and out.
    layer = 2 * 2 + (written + read_back) * 16
    assert hbm_bytes(read) == pytest.approx((6 * layer + 16 + 2 * 12) * MIB, abs=1024)


def test_a_real_program_of_xla():
    def f(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((4, 16), (9, 16, 16))]
    text = jax.jit(f).lower(*shapes).compile().as_text()
    assert text is not None
    read = parse(text)
    assert 9 in read.runs.values()
    assert read.unknown_loops == 0
    assert collect(read, {"data": 1}) == []
