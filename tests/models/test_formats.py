"""Codes and scales beside torch's, and which block a model's widths allow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chopjax.commands.flags import WEIGHTS
from chopjax.errors import UserError
from chopjax.models.families import translate
from chopjax.models.formats import FORMATS, ZERO, Kind, encode, forms, in_bytes

LARGEST = {"int4": 7, "int8": 127, "fp8": 448}


def test_the_flag_names_every_format() -> None:
    assert sorted(WEIGHTS) == sorted(FORMATS)


def in_torch(weight: torch.Tensor, kind: str, block: int, dtype: torch.dtype) -> tuple:
    """(codes, scales), each as torch rounds it; int4 from -7 to 7."""
    rows = weight.float().reshape(len(weight), -1, block or weight.shape[1])
    scale = (rows.abs().amax(-1) / LARGEST[kind]).to(dtype)
    scaled = rows / torch.where(scale == 0, 1, scale).float()[..., None]
    scaled = scaled.clamp(-LARGEST[kind], LARGEST[kind])
    codes = scaled.to(torch.float8_e4m3fn) if kind == "fp8" else scaled.round()
    return codes.float().reshape(weight.shape).numpy(), scale.float().numpy()


@given(
    kind=st.sampled_from(["int4", "int8", "fp8"]),
    makes=st.integers(1, 5),
    blocks=st.integers(1, 3),
    narrow=st.booleans(),
    seed=st.integers(0, 99),
)
def test_codes_and_scales_are_torch_s(
    kind: Kind, makes: int, blocks: int, narrow: bool, seed: int
) -> None:
    """Of scales in float32 and in bfloat16, by which the codes are then found."""
    block = 32 if kind == "int4" else 0
    weights = np.random.default_rng(seed).normal(size=(makes, 32 * blocks)).astype(np.float32)
    weights[0, :32] = 0
    dtype = torch.bfloat16 if narrow else torch.float32
    their_codes, their_scales = in_torch(torch.tensor(weights), kind, block, dtype)
    codes, scales = encode(weights, kind, block, "bfloat16" if narrow else "float32")
    plain = codes.astype(np.float32) - (ZERO if kind == "int4" else 0)
    np.testing.assert_array_equal(plain, their_codes)
    np.testing.assert_array_equal(scales.astype(np.float32), their_scales)


@given(block=st.sampled_from([32, 64]), blocks=st.integers(1, 3), seed=st.integers(0, 99))
def test_two_codes_a_byte(block: int, blocks: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 16, (3, blocks * block)).astype(np.uint8)
    packed = in_bytes(codes, block).reshape(3, blocks, block // 2)
    assert packed.nbytes * 2 == codes.nbytes
    back = np.concatenate([packed >> 4, packed & 15], axis=-1)
    np.testing.assert_array_equal(back.reshape(codes.shape), codes)


@pytest.mark.parametrize(
    ("width", "inner", "block"), [(256, 384, 128), (64, 192, 64), (64, 96, 32), (64, 80, 16)]
)
def test_the_largest_block_that_divides_every_width(width: int, inner: int, block: int) -> None:
    raw = {"model_type": "llama", "hidden_size": width, "intermediate_size": inner}
    found = forms(translate({**raw, "num_attention_heads": 4})[1], "int4")
    assert {form.block for form in found.values()} == {block}


def test_a_width_that_no_block_divides() -> None:
    raw = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 72}
    config = translate({**raw, "num_attention_heads": 4})[1]
    with pytest.raises(UserError, match="blocks/mlp/down has 72 inputs\nTake int8 or fp8"):
        forms(config, "int4")
