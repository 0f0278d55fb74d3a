"""Folders of any name hold whole checkpoints; what is not whole gets no name."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from chopjax.checkpoint import orbax_folder
from chopjax.checkpoint.manifest import MANIFEST, verify_files, write_manifest
from chopjax.checkpoint.orbax_disk import check_saved, orbax_path, seal, shapes_by_name
from chopjax.errors import UserError
from chopjax.train import checkpoints

ODD = ["run[a]", "[0-9]", "a*b", "a**b", "a?b", "{a,b}", "a\\b", "\\", "é [ü]", "a%20b"]
ODD.append(os.fsdecode(b"\xff"))
PARAMS: dict[str, Any] = {
    "blocks": {"w": jnp.arange(6.0).reshape(2, 3)},
    "norm": jnp.ones(3, jnp.bfloat16),
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the way through /proc")


@pytest.mark.parametrize("name", ODD)
def test_parameters_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    """Also beside folders that the name would match as a pattern, or as a path of Windows."""
    for other in ("runa", "5", "ab", "axb", "aXb", "a", "b"):
        (tmp_path / other).mkdir()
    folder = tmp_path / name / "below"
    folder.mkdir(parents=True)
    orbax_folder.save_params(folder / "params", PARAMS)
    write_manifest(folder / "params")
    orbax_folder.check_files(folder / "params")
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)
    found = orbax_folder.load_params(folder / "params", abstract)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(PARAMS), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    others = [p for p in tmp_path.rglob("*") if p.is_file() and folder not in p.parents]
    assert others == []


@pytest.mark.parametrize("name", ["step [1]", "a\\b"])
def test_a_run_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    descriptors = len(os.listdir("/proc/self/fd"))
    with checkpoints.Saver(folder, keep_last=2, keep_every=0) as saver:
        for step in (1, 2, 3):
            saver.save(step, {"params": PARAMS, "step": jnp.int32(step)}, {"step": step})
        saver.wait()
    assert checkpoints.steps(folder) == [2, 3]
    assert checkpoints.latest_good(folder) == 3
    found = checkpoints.restore(folder, 3, {"params": PARAMS, "step": jnp.int32(0)})
    np.testing.assert_array_equal(found["params"]["blocks"]["w"], PARAMS["blocks"]["w"])
    assert int(found["step"]) == 3
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1  # none is left open


def test_what_cannot_be_read_back_gets_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the detour Orbax says that it saved, and nothing is there."""
    folder = tmp_path / "run[a]"
    folder.mkdir()
    for module in (checkpoints, orbax_folder):
        monkeypatch.setattr(module, "orbax_path", contextlib.nullcontext)
    with checkpoints.Saver(folder, keep_last=2, keep_every=0) as saver:
        saver.save(1, {"params": PARAMS}, {})
        with pytest.raises(UserError, match="cannot be read back"):
            saver.wait()
    assert checkpoints.steps(folder) == []
    with pytest.raises(UserError, match="cannot be read back"):
        orbax_folder.save_params(folder / "params", PARAMS)


def test_every_array_must_be_there_with_shape_and_type(tmp_path: Path) -> None:
    ocp.save(tmp_path / "x", {"params": PARAMS}, checkpointable_name=orbax_folder.PYTREE)
    expected = shapes_by_name({"params": PARAMS})
    check_saved(tmp_path / "x", expected)
    for wrong in (((2, 3), "bfloat16"), ((3, 2), "float32")):
        with pytest.raises(RuntimeError, match="params/blocks/w"):
            check_saved(tmp_path / "x", expected | {"params/blocks/w": wrong})
    with pytest.raises(RuntimeError, match="params/more"):
        check_saved(tmp_path / "x", expected | {"params/more": ((1,), "int32")})


def test_usual_names_are_taken_as_they_are(tmp_path: Path) -> None:
    with orbax_path(tmp_path / "params") as path:
        assert path == tmp_path / "params"


def test_an_emptied_marker_is_damage(tmp_path: Path) -> None:
    orbax_folder.save_params(tmp_path / "params", PARAMS)
    seal(tmp_path / "params")
    write_manifest(tmp_path / "params")
    assert verify_files(tmp_path / "params") == []
    marker = tmp_path / "params" / "orbax.checkpoint"
    marker.write_bytes(b"")
    (problem,) = verify_files(tmp_path / "params")
    assert str(marker) in problem
    assert "0 bytes" in problem


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: b"",
        lambda raw: raw[:-1],
        lambda raw: raw + b" ",
        lambda raw: raw.replace(b"{", b"{ ", 1),
        lambda raw: b"[" * 99_999,
        lambda raw: b"null",
        lambda raw: b'{"../x": [1, "a"]}',
        lambda raw: b'{"a": [1e999, "a"]}',
        lambda raw: b"\xff\xfe",
    ],
)
def test_damage_of_the_manifest_itself(tmp_path: Path, change) -> None:
    (tmp_path / "a").write_text("a")
    write_manifest(tmp_path)
    manifest = tmp_path / MANIFEST
    manifest.write_bytes(change(manifest.read_bytes()))
    (problem,) = verify_files(tmp_path)
    assert str(manifest) in problem


def test_a_manifest_does_not_lead_outside(tmp_path: Path) -> None:
    folder, secret = tmp_path / "folder", tmp_path / "secret"
    folder.mkdir()
    secret.write_text("a")
    (folder / "a").write_text("a")
    write_manifest(folder)
    (folder / "a").unlink()
    (folder / "a").symlink_to(secret)
    (problem,) = verify_files(folder)
    assert "outside" in problem
    (folder / "a").unlink()
    os.mkfifo(folder / "a")  # reading it would never end
    (problem,) = verify_files(folder)
    assert "missing" in problem
