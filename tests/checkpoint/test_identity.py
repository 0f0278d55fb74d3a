"""What tells models apart, and what does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import checkpoints
import pytest

from chopjax.checkpoint import identity
from chopjax.checkpoint.open import open_checkpoint


def seen(folder: Path) -> dict[str, str | None]:
    checkpoint = open_checkpoint(str(folder))
    return identity.fingerprint(checkpoint.raw_config, checkpoint.tensors)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_changed_byte_where_the_sample_is(tmp_path: Path, place: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    checkpoints.write_checkpoint(one, "llama")
    shutil.copytree(one, two)
    assert identity.differences(seen(one), seen(two)) == []
    tensor = max(open_checkpoint(str(two)).tensors.values(), key=lambda t: t.nbytes)
    offset = {"first": 0, "middle": tensor.nbytes // 2, "last": tensor.nbytes - 1}[place]
    raw = bytearray(tensor.file.read_bytes())
    raw[tensor.start + offset] ^= 1
    tensor.file.write_bytes(raw)
    assert identity.differences(seen(one), seen(two)) == ["the weights"]


def test_what_is_not_known_tells_nothing_apart(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path / "one", "llama")
    whole = seen(tmp_path / "one")
    own = identity.fingerprint(open_checkpoint(str(tmp_path / "one")).raw_config, None)
    assert own["sample"] is own["tensors"] is None
    assert identity.differences(whole, own) == []
    assert identity.differences(whole, own | {"config": "x"}) == ["config.json"]
