"""What NVIDIA's libraries compute, as XLA writes their calls."""

import pytest

from chopjax.plan.gpu_kernels import work_space
from chopjax.plan.hlo import parse
from chopjax.plan.products import product_flops, unknown_kernels
from chopjax.plan.traffic import hbm_bytes

HEADER = "HloModule f, is_scheduled=true\n\nENTRY %main (a: bf16[64,32]) -> f32[8] {\n"


def program(*lines: str) -> str:
    return HEADER + "\n".join(f"  {line}" for line in lines) + "\n}\n"


def flops_of(text: str) -> int:
    read = parse(text)
    return sum(product_flops(read, name, one, 1.0) for name, one, _ in read.instructions())


GEMM = program(
    "%a = bf16[4,64,32]{2,1,0} parameter(0)",
    "%b = bf16[4,64,16]{2,1,0} parameter(1)",
    'ROOT %c = (f32[4,32,16]{2,1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="'
    '__cublas$lt$matmul", backend_config={"gemm_backend_config":{"beta":0,"dot_dimension_numbers":'
    '{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"],'
    '"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]}}}',
)


def test_cublas():
    assert flops_of(GEMM) == 2 * 4 * 64 * 32 * 16
    # Without what it works in.
    assert hbm_bytes(parse(GEMM)) == 2 * 4 * 64 * (32 + 16) + 4 * 4 * 32 * 16


def attention(target: str, mask: str, window: int = 0) -> str:
    """Two heads over 8 queries and keys, of size 16."""
    array = "bf16[1,8,2,16]{3,2,1,0}"
    results = [f"{array[:-9]}" + "{3,2,1,0}", "f32[1,2,8]{2,1,0}", "u8[0]{0}"]
    if "Backward" in target:
        results = [results[0]] * 3 + ["u8[0]{0}"]
    return program(
        f"%q = {array} parameter(0)",
        f"ROOT %o = ({', '.join(results)}) custom-call(%q, %q, %q), custom_call_target="
        f'"__cudnn${target}", backend_config={{"cudnn_fmha_backend_config": {{'
        '"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["1", "2", "8", "8"], '
        f'"tuple_shapes": []}}, "mask_type": "{mask}", "sliding_window_length": {window}}}}}',
    )


@pytest.mark.parametrize(
    ("target", "mask", "window", "products", "seen"),
    [
        ("fmhaSoftmax", "CAUSAL", 0, 2, 36),
        ("fmhaSoftmaxBackward", "CAUSAL", 0, 5, 36),
        ("fmhaSoftmax", "NO_MASK", 0, 2, 64),
        ("fmhaSoftmax", "PADDING", 0, 2, 64),
        ("fmhaSoftmax", "CAUSAL", 3, 2, 1 + 2 + 6 * 3),
    ],
)
def test_cudnn(target: str, mask: str, window: int, products: int, seen: int):
    text = attention(target, mask, window)
    assert flops_of(text) == 2 * products * 2 * seen * 16
    assert unknown_kernels(parse(text)) == []


def test_the_backward_pass_needs_room_for_its_sums():
    def room(target: str) -> int:
        read = parse(attention(target, "CAUSAL"))
        return max(work_space(one) for _, one, _ in read.instructions())

    assert room("fmhaSoftmaxBackward") == 4 * 8 * 2 * 16
    assert room("fmhaSoftmax") == 0


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("__cub$DeviceRadixSortUnpaired", []),
        ("cu_threefry2x32_ffi", []),
        ("AllocateBuffer", []),
        ("__cudnn$convForward", ["__cudnn$convForward"]),
        ("__cublas$gemm", ["__cublas$gemm"]),  # without its dimensions
        ("__gpu$xla.gpu.triton", ["__gpu$xla.gpu.triton"]),
        ("mosaic_gpu_v2", ["mosaic_gpu_v2"]),
    ],
)
def test_what_is_not_known_is_named(target: str, named: list[str]):
    text = program(
        "%a = bf16[64,32]{1,0} parameter(0)",
        f'ROOT %c = f32[8]{{0}} custom-call(%a), custom_call_target="{target}"',
    )
    assert unknown_kernels(parse(text)) == named
    assert flops_of(text) == 0
