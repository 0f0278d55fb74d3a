"""Codes in words of 32 bits, beside whole numbers and the library's own packing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chopjax.checkpoint.compressed_tensors import describe, held_as, pack, unpack
from chopjax.models.formats import FORMATS, ZERO, Kind


def codes_of(kind: Kind, makes: int, reads: int, seed: int) -> np.ndarray:
    """As `encode` gives them."""
    most = int(FORMATS[kind].largest)
    plain = np.random.default_rng(seed).integers(-most, most + 1, (makes, reads))
    return (plain + (ZERO if kind == "int4" else 0)).astype(FORMATS[kind].codes)


@pytest.mark.parametrize("kind", ["int4", "int8"])
@given(makes=st.integers(1, 3), reads=st.integers(1, 21), seed=st.integers(0, 99))
def test_a_row_is_one_long_number(kind: Kind, makes: int, reads: int, seed: int) -> None:
    """Of codes made positive, the first in the lowest bits; what is over is zero."""
    bits, codes = FORMATS[kind].bits, codes_of(kind, makes, reads, seed)
    packed = pack(codes, kind)
    assert packed.dtype == np.int32
    assert packed.shape == (makes, -(-reads * bits // 32))
    shift = 0 if kind == "int4" else 1 << 7
    for row, words in zip(codes.tolist(), packed, strict=True):
        number = sum((code + shift) << (at * bits) for at, code in enumerate(row))
        assert int.from_bytes(words.tobytes(), "little") == number
    np.testing.assert_array_equal(unpack(packed, kind)[:, :reads], codes)


@pytest.mark.parametrize(("kind", "block"), [("int4", 64), ("int8", 0), ("fp8", 0)])
def test_what_config_json_says_is_read_back(kind: Kind, block: int) -> None:
    said = describe(kind, block, ["lm_head"])
    assert held_as({"quantization_config": said}) == (kind, block)
    assert held_as({"quantization_config": said | {"kv_cache_scheme": {"num_bits": 8}}}) is None
    assert held_as({}) is None


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_the_library_packs_so(kind: Kind) -> None:
    packing = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = codes_of(kind, 5, 37, 0)
    plain = codes.astype(np.int8) - (ZERO if kind == "int4" else 0)
    theirs = packing.pack_to_int32(torch.tensor(plain), FORMATS[kind].bits)
    np.testing.assert_array_equal(pack(codes, kind), theirs.numpy())
