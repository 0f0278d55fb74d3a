"""Checkpoints: complete or not there; every damage is found; nothing is ever overwritten."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.checkpoint.manifest import MANIFEST
from chopjax.disk.mark import begin_mark
from chopjax.errors import UserError
from chopjax.train import checkpoints


def state_of(step: int) -> dict:
    return {"params": {"blocks": {"w": jnp.full((2, 3), float(step))}}, "step": jnp.int32(step)}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Checkpoints of steps 1, 2 and 3."""
    with checkpoints.Saver(tmp_path, keep_last=3, keep_every=0) as saver:
        for step in (1, 2, 3):
            saver.save(step, state_of(step), {"step": step})
        saver.wait()
    return tmp_path


def test_saved_and_restored(folder):
    assert checkpoints.steps(folder) == [1, 2, 3]
    assert checkpoints.latest_good(folder) == 3
    assert checkpoints.read_record(folder, 3) == {"step": 3}
    restored = checkpoints.restore(folder, 3, state_of(0))
    np.testing.assert_array_equal(restored["params"]["blocks"]["w"], np.full((2, 3), 3.0))
    assert restored["step"] == 3
    assert restored["step"].dtype == jnp.int32


def test_the_manifest_covers_every_file(folder):
    manifest = json.loads((folder / "3" / MANIFEST).read_text())
    files = {p.relative_to(folder / "3").as_posix() for p in (folder / "3").rglob("*")}
    files = {name for name in files if (folder / "3" / name).is_file()}
    assert set(manifest) == files - {MANIFEST}


def test_any_damage_is_named_and_the_run_falls_back(tmp_path, capsys):
    """Every file in turn truncated, flipped and removed."""
    with checkpoints.Saver(tmp_path, 2, 0) as saver:
        for step in (1, 2):
            saver.save(step, state_of(step), {})
        saver.wait()
    names = sorted(p for p in (tmp_path / "2").rglob("*") if p.is_file())
    for path in names:
        content = path.read_bytes()
        damages: list[bytes | None] = [None]
        if content:
            flipped = bytearray(content)
            flipped[len(content) // 2] ^= 4
            damages += [content[: len(content) // 2], bytes(flipped)]
        for damage in damages:
            path.unlink()
            if damage is not None:
                path.write_bytes(damage)
            assert checkpoints.latest_good(tmp_path) == 1, (path, damage)
            said = capsys.readouterr().err
            assert "step 2 is damaged" in said
            if path.name != MANIFEST:
                assert str(path) in said
            assert checkpoints.steps(tmp_path) == [1]
            aside = tmp_path / "2.damaged"
            aside.rename(tmp_path / "2")
            path.write_bytes(content)
    assert checkpoints.latest_good(tmp_path) == 2


def test_damaged_ones_are_kept_aside(folder):
    for _ in range(2):
        (folder / "3" / checkpoints.RECORD).write_text("{}")
        assert checkpoints.latest_good(folder) == 2
        with checkpoints.Saver(folder, 9, 0) as saver:
            saver.save(3, state_of(3), {})
            saver.wait()
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2", "3", "3.damaged", "3.damaged-2"]


def test_all_damaged_stops(folder):
    for step in (1, 2, 3):
        (folder / str(step) / MANIFEST).unlink()
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        checkpoints.latest_good(folder)
    assert (folder / "1").is_dir()


def test_none_is_not_damaged(tmp_path):
    assert checkpoints.latest_good(tmp_path) is None
    (tmp_path / ".saving-00000000" / "7").mkdir(parents=True)
    begin_mark(tmp_path / ".saving-00000000", "train")
    assert checkpoints.latest_good(tmp_path) is None
    checkpoints.remove_partial(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_others_call_so_stays(folder):
    """Names like those of saves and checkpoints are not enough."""
    for name in ("7.partial", ".saving-1234abcd", "7.partial.orbax-checkpoint-tmp", "0"):
        (folder / name).mkdir()
        (folder / name / "mine").write_text("precious")
    (folder / "1" / "mine").write_text("precious")
    checkpoints.remove_partial(folder)
    assert checkpoints.latest_good(folder) == 3
    with checkpoints.Saver(folder, 1, 0) as saver:
        saver.save(4, state_of(4), {})
        saver.wait()
    left = {path.parent.name for path in folder.glob("*/mine")}
    assert left == {"7.partial", ".saving-1234abcd", "7.partial.orbax-checkpoint-tmp", "0", "1"}
    assert checkpoints.steps(folder) == [0, 1, 4]


def test_a_folder_named_like_a_step_is_not_set_aside(folder):
    (folder / "9").mkdir()
    (folder / "9" / "run.json").write_text("mine")
    with pytest.raises(UserError, match=r"9 is not a checkpoint"):
        checkpoints.latest_good(folder)
    assert (folder / "9" / "run.json").read_text() == "mine"


def test_retention(tmp_path):
    with checkpoints.Saver(tmp_path, keep_last=2, keep_every=4) as saver:
        for step in range(2, 13, 2):
            saver.save(step, state_of(step), {})
        saver.wait()
    assert checkpoints.steps(tmp_path) == [4, 8, 10, 12]


def test_what_is_saved_is_what_was_there_when_save_was_called(tmp_path):
    import jax

    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = {"w": jnp.zeros(1 << 20)}
    with checkpoints.Saver(tmp_path, 9, 0) as saver:
        for number in range(3):
            saver.save(number, state, {})
            for _ in range(5):
                state = step(state)
        saver.wait()
    for number in range(3):
        restored = checkpoints.restore(tmp_path, number, state)
        assert set(np.unique(restored["w"])) == {5.0 * number}


def test_a_full_disk_is_a_clear_error_and_loses_nothing(folder, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoints, "flush_tree", full)
    with checkpoints.Saver(folder, 1, 0) as saver:
        saver.save(4, state_of(4), {})
        with pytest.raises(UserError, match="No space left on device") as error:
            saver.wait()
    assert "the newest checkpoint is that of step 3" in str(error.value)
    assert checkpoints.steps(folder) == [1, 2, 3]
    assert checkpoints.latest_good(folder) == 3


def test_another_shape_is_a_clear_error(folder):
    other = {"params": {"blocks": {"w": jnp.zeros((2, 4))}}, "step": jnp.int32(0)}
    with pytest.raises(UserError, match="does not fit this run"):
        checkpoints.restore(folder, 3, other)
    with pytest.raises(UserError, match="does not fit this run"):
        checkpoints.restore(folder, 3, {"params": {"v": jnp.zeros((2, 3))}})
