"""FLOPs of compiled programs, beside XLA's own count and by hand."""

import inspect
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

from chopjax.plan.hlo import parse
from chopjax.plan.products import SPLASH_PRODUCTS, product_flops, unknown_kernels


def flops_of(text: str, tile_share: float = 1.0) -> int:
    """Of all that runs."""
    program = parse(text)
    return sum(
        runs * product_flops(program, computation, instruction, tile_share)
        for computation, instruction, runs in program.instructions()
        if computation not in program.inner
    )


def program(*lines: str, others: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule f, is_scheduled=true\n\n{others}\nENTRY %main () -> f32[8] {{\n{body}\n}}\n"


@pytest.mark.parametrize(
    ("left", "right", "out", "text", "flops"),
    [
        # As the TPU compiler writes a product of [4096, 2048] and [2048, 512] …
        ("4096,2048", "2048,512", "4096,512", "dim_labels=bf_io->bf", 4096 * 2048 * 512),
        (
            "8,2048,512", "512,1024,1", "8,2048,1024", "window={size=1}, dim_labels=0bf_io0->0bf",
            8 * 2048 * 512 * 1024,
        ),
        # … with heads: [2, 64, 512] by [512, 32, 128], each head's part at its own place …
        (
            "2,64,512,1", "512,32,128,1", "2,64,32,128",
            "window={size=1x32 pad=0_0x31_31 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f",
            2 * 64 * 512 * 32 * 128,
        ),
        # … and summed over them and over the batch, for a kernel's gradient.
        (
            "2,64,32,128", "512,32,128,1", "2,64,512,1",
            "window={size=1x32}, dim_labels=0b1f_o1i0->0bf1", 2 * 64 * 512 * 32 * 128,
        ),
        (
            "2,64,512,1", "2,64,32,128", "512,32,128,1",
            "window={size=32x2 pad=31_31x0_0 rhs_reversal=1x0}, dim_labels=1fb0_1i0o->b0f1",
            2 * 64 * 512 * 32 * 128,
        ),
    ],
)  # fmt: skip
def test_convolutions_of_the_tpu_compiler(left: str, right: str, out: str, text: str, flops: int):
    lines = (
        f"%a = bf16[{left}]{{1,0}} parameter(0)",
        f"%b = bf16[{right}]{{1,0}} parameter(1)",
        f"ROOT %c = bf16[{out}]{{1,0}} convolution(%a, %b), {text}",
    )
    assert flops_of(program(*lines)) == 2 * flops


def test_the_same_as_xla_counts():
    """Convolutions of every kind, and products in batches."""

    def convolve(steps, padding, **settings):
        def f(x, w):
            return jax.lax.conv_general_dilated(x, w, steps, padding, **settings)

        return f

    dilated = {"lhs_dilation": (2, 1), "rhs_dilation": (1, 2)}
    cases = [
        (jnp.dot, (16, 32), (32, 64)),
        (lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (4, 16, 32), (4, 32, 8)),
        (convolve((1, 2), ((1, 1), (0, 2))), (2, 4, 9, 8), (6, 4, 3, 3)),
        (convolve((1, 1), "SAME", feature_group_count=2), (2, 4, 9, 8), (6, 2, 3, 3)),
        (convolve((1, 1), ((0, 1), (2, 0)), **dilated), (2, 4, 9, 8), (6, 4, 3, 3)),
    ]
    for f, *shapes in cases:
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        compiled = jax.jit(f).lower(*arrays).compile()
        text, counted = compiled.as_text(), compiled.cost_analysis()
        assert text is not None
        assert isinstance(counted, dict)
        assert flops_of(text) == counted["flops"], shapes


# As jax 0.10.2 and 0.12.0.1 write them for v5p, with 4 heads of keys for 32 of queries; and what
# jax writes where one kernel makes all three gradients.
FORWARD = {
    "0.10": "%splash_mha_fwd_residuals.1 = (f32[8,512,128]{2,1,0:T(8,128)}, "
    "f32[8,512,128]{2,1,0:T(8,128)}, f32[8,512,128]{2,1,0:T(8,128)}, "
    "bf16[8,32,2048,128]{3,2,1,0:T(8,128)(2,1)}, f32[8,32,2048,128]{3,2,1,0:T(8,128)}) "
    "custom-call(%tiles, %tiles, %query, %key, %key, /*index=5*/%order), "
    'custom_call_target="tpu_custom_call"',
    "0.12": "%splash_mha_fwd_residuals.1 = (bf16[8,32,2048,128]{3,2,1,0:T(8,128)(2,1)}, "
    "f32[8,32,2048,128]{3,2,1,0:T(8,128)}) custom-call(%tiles, %tiles, %query, %key, %key, "
    '/*index=5*/%order), custom_call_target="tpu_custom_call"',
}
QUERIES = {
    "0.10": "%splash_mha_dq_no_residuals.1 = (f32[8,512,128]{2,1,0:T(8,128)}, "
    "bf16[8,32,2048,128]{3,2,1,0:T(8,128)(2,1)}) custom-call(%tiles, %tiles, %query, %key, %key), "
    'custom_call_target="tpu_custom_call"',
    "0.12": "%splash_mha_dq_no_residuals.1 = bf16[8,32,2048,128]{3,2,1,0:T(8,128)(2,1)} "
    'custom-call(%tiles, %tiles, %query, %key, %key), custom_call_target="tpu_custom_call"',
}
KEYS = {
    "0.10": "%splash_mha_dkv_segmented_no_residuals.1 = (f32[8,512,128]{2,1,0:T(8,128)}, "
    "f32[8,512,128]{2,1,0:T(8,128)}, bf16[8,4,2048,128]{3,2,1,0:T(8,128)(2,1)}, "
    "bf16[8,4,2048,128]{3,2,1,0:T(8,128)(2,1)}) custom-call(%tiles, %tiles, %query, %key, %key), "
    'custom_call_target="tpu_custom_call"',
    "0.12": "%splash_mha_dkv_segmented_no_residuals.1 = "
    "(bf16[8,4,2048,128]{3,2,1,0:T(8,128)(2,1)}, bf16[8,4,2048,128]{3,2,1,0:T(8,128)(2,1)}) "
    'custom-call(%tiles, %tiles, %query, %key, %key), custom_call_target="tpu_custom_call"',
    "fused": "%splash_mha_dkv_no_residuals.1 = (bf16[4,8,32,2048,128]{4,3,2,1,0:T(8,128)(2,1)}, "
    "bf16[8,4,2048,128]{3,2,1,0:T(8,128)(2,1)}, bf16[8,4,2048,128]{3,2,1,0:T(8,128)(2,1)}) "
    'custom-call(%tiles, %tiles, %query, %key, %key), custom_call_target="tpu_custom_call"',
}
ARGUMENTS = (
    "%tiles = s8[1,4,4]{2,1,0:T(4,128)(4,1)S(1)} parameter(0)",
    "%order = s32[2048,128]{1,0:T(8,128)} parameter(1)",
    "%query = bf16[8,32,2048,128]{3,2,1,0:T(8,128)(2,1)} parameter(2)",
    "%key = bf16[8,4,2048,128]{3,2,1,0:T(8,128)(2,1)} parameter(3)",
)


@pytest.mark.parametrize(
    ("line", "products"),
    [
        *((line, 2) for line in FORWARD.values()),
        *((line, 3) for line in QUERIES.values()),
        *zip(KEYS.values(), (4, 4, 5), strict=True),
    ],
)
def test_splash(line: str, products: int):
    """8 rows of 32 heads, which share 4 of keys; a product of every query with its keys or with
    its values, where there are tiles."""
    text = program(*ARGUMENTS, line)
    assert flops_of(text, 10 / 16) == products * 2 * 8 * 32 * 2048 * 2048 * 128 * 10 / 16
    assert unknown_kernels(parse(text)) == []


def test_splash_s_products_are_those_of_the_kernel():
    source = inspect.getsource(splash_attention_kernel)
    names = ("flash_attention_kernel", "_flash_attention_dq_kernel", "_flash_attention_dkv_kernel")
    bodies = [source[source.index(f"def {name}(") :].split("\ndef ")[0] for name in names]
    forward, queries, keys = (len(re.findall(r"lax\.dot(?:_general)?\(", b)) for b in bodies)
    # The last has the queries' gradient as well, which it leaves to the second in long rows.
    assert {"fwd": forward, "dq": queries, "dkv": keys - 1} == SPLASH_PRODUCTS


def test_products_by_groups():
    """4,096 rows, each with the kernel [256, 512] of one of 8 groups, and the kernels' gradients.

    As libtpu 0.0.52 writes them.
    """
    kernel = 'custom_call_target="tpu_custom_call"'
    arguments = (
        "%ends = s32[9]{0:T(128)} parameter(0)",
        "%rows = bf16[4096,256]{1,0:T(8,128)(2,1)} parameter(1)",
        "%kernels = bf16[8,256,512]{2,1,0:T(8,128)(2,1)} parameter(2)",
        "%out = bf16[4096,512]{1,0:T(8,128)(2,1)} parameter(3)",
    )
    text = program(
        *arguments,
        f"%ragged-dot-metadata.1 = (s32[9]{{0}}, s32[39]{{0}}) custom-call(%ends), {kernel}",
        f"%ragged-dot-none.9 = bf16[4096,512]{{1,0}} custom-call(%ends, %rows, %kernels), {kernel}",
        f"%ragged-dot-none.7 = bf16[8,256,512]{{2,1,0}} custom-call(%ends, %rows, %out), {kernel}",
    )
    assert flops_of(text) == 2 * 2 * 4096 * 256 * 512
    assert unknown_kernels(parse(text)) == []


def test_kernels_that_are_not_known_are_named():
    lines = [
        f"%{name} = bf16[8,4,2048,128]{{3,2,1,0}} custom-call(%key), "
        'custom_call_target="tpu_custom_call"'
        for name in ("my_kernel.1", "my_kernel.2.clone.3", "other")
    ]
    text = program(*ARGUMENTS, *lines)
    assert flops_of(text) == 0
    assert unknown_kernels(parse(text)) == ["my_kernel", "my_kernel.2.clone", "other"]


def test_products_within_count_as_often_as_what_they_are_in():
    others = """%inner (a: bf16[4,8], b: bf16[8,16]) -> bf16[4,16] {
  %a = bf16[4,8]{1,0} parameter(0)
  %b = bf16[8,16]{1,0} parameter(1)
  ROOT %c = bf16[4,16]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
}

%outer (a: bf16[4,8], b: bf16[8,16]) -> bf16[4,16] {
  %a = bf16[4,8]{1,0} parameter(0)
  %b = bf16[8,16]{1,0} parameter(1)
  %f = bf16[4,16]{1,0} fusion(%a, %b), kind=kOutput, calls=%inner
  ROOT %n = bf16[4,16]{1,0} negate(%f)
}

%body (p: (s32[], bf16[4,8], bf16[8,16])) -> (s32[], bf16[4,8], bf16[8,16]) {
  %p = (s32[], bf16[4,8]{1,0}, bf16[8,16]{1,0}) parameter(0)
  %f = bf16[4,16]{1,0} fusion(%p#1, %p#2), kind=kOutput, calls=%outer
  %one = s32[] constant(1)
  %next = s32[] add(%p#0, %one)
  ROOT %t = (s32[], bf16[4,8]{1,0}, bf16[8,16]{1,0}) tuple(%next, %p#1, %p#2)
}

%condition (p: (s32[], bf16[4,8], bf16[8,16])) -> pred[] {
  %p = (s32[], bf16[4,8]{1,0}, bf16[8,16]{1,0}) parameter(0)
  %limit = s32[] constant(5)
  ROOT %lt = pred[] compare(%p#0, %limit), direction=LT
}
"""
    lines = (
        "%a = bf16[4,8]{1,0} parameter(0)",
        "%b = bf16[8,16]{1,0} parameter(1)",
        "%zero = s32[] constant(0)",
        "%t = (s32[], bf16[4,8]{1,0}, bf16[8,16]{1,0}) tuple(%zero, %a, %b)",
        "%w = (s32[], bf16[4,8]{1,0}, bf16[8,16]{1,0}) while(%t), condition=%condition, body=%body",
    )
    assert flops_of(program(*lines, others=others)) == 5 * 2 * 4 * 8 * 16
    call = "%c = bf16[4,16]{1,0} call(%a, %b), to_apply=%outer"
    assert flops_of(program(*lines, call, others=others)) == 6 * 2 * 4 * 8 * 16
