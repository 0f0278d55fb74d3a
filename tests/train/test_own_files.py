"""A training run takes no place that somebody else's files have, and knows its own."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import pytest

from chopjax.disk.mark import MARK, begin_mark, remove_marked
from chopjax.errors import UserError
from chopjax.launch.workdir import LOCK, owned
from chopjax.train import checkpoints
from chopjax.train.metrics import MetricsWriter
from chopjax.train.own_files import check_workdir, foreign_files, new_assets


def begin(workdir: Path, text: str = "{}") -> None:
    """What a run writes before its first step."""
    workdir.mkdir(exist_ok=True)
    with new_assets(workdir) as folder:
        (folder / "huggingface").mkdir()
        (folder / "huggingface" / "config.json").write_text(text)
        (folder / "chopjax_folder.json").write_text("{}")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    workdir = tmp_path / "run"
    with owned(workdir, check_workdir):
        begin(workdir)
        (workdir / "checkpoints").mkdir()
        with checkpoints.Saver(workdir / "checkpoints", 2, 0) as saver:
            saver.save(1, {"step": jnp.int32(1)}, {})
            saver.wait()
        with MetricsWriter(workdir, 0, tensorboard=True) as writer:
            writer.write(1, {"loss": 1.0})
    return workdir


@pytest.mark.parametrize(
    "name",
    [
        "huggingface/hub/models--big/blob",
        "chopjax_folder.json",
        "checkpoints/7/weights",
        "checkpoints/mine.txt",
        "tensorboard/events.out",
        "metrics.jsonl",
        "huggingface",
    ],
)
def test_places_that_others_have_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("precious")
    with pytest.raises(UserError, match=name.partition("/")[0]), owned(tmp_path, check_workdir):
        raise AssertionError("entered")
    assert path.read_text() == "precious"
    assert not (tmp_path / LOCK).exists()


def test_a_file_named_like_the_lock_stays(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("precious")
    with pytest.raises(UserError, match=r"\.lock"), owned(tmp_path, check_workdir):
        raise AssertionError("entered")
    assert (tmp_path / LOCK).read_text() == "precious"


@pytest.mark.parametrize(
    ("before", "written", "left"),
    [
        ((), (), ()),
        (("deep/run",), (), ("deep/run/.chopjax.json", "deep/run/.lock")),
        (("deep",), (), ()),
        (
            (),
            ("checkpoints/notes.txt",),
            ("deep/run/.chopjax.json", "deep/run/.lock", "deep/run/checkpoints/notes.txt"),
        ),
    ],
)
def test_a_folder_goes_again_where_a_run_is_refused(
    before: tuple[str, ...], written: tuple[str, ...], left: tuple[str, ...], tmp_path: Path
) -> None:
    workdir = tmp_path / "deep" / "run"
    for name in before:
        (tmp_path / name).mkdir(parents=True)

    def refuse() -> None:
        begin_mark(workdir, "train")
        (workdir / "checkpoints").mkdir()
        for name in written:
            (workdir / name).write_text("precious")
        raise UserError("refused")

    with pytest.raises(UserError, match="refused"), owned(workdir, check_workdir):
        refuse()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert tuple(sorted(path.relative_to(tmp_path).as_posix() for path in files)) == left
    assert (tmp_path / "deep").exists() == bool(before or left)


def test_other_files_of_a_folder_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("precious")
    (tmp_path / "checkpoints").mkdir()
    with owned(tmp_path, check_workdir):
        begin(tmp_path)
        begin(tmp_path, text="again, before a checkpoint was saved")
    assert (tmp_path / "notes.txt").read_text() == "precious"


def test_a_run_of_an_earlier_chopjax_goes_on(run: Path) -> None:
    (run / MARK).unlink()
    check_workdir(run)
    assert foreign_files(run), "but it is not deleted"


def test_a_folder_of_another_verb_is_refused(run: Path) -> None:
    mark = run / MARK
    mark.write_text(mark.read_text().replace('"train"', '"import"'))
    with pytest.raises(UserError, match="folder of `chopjax import`"):
        check_workdir(run)


def test_changed_assets_are_not_written_over(run: Path) -> None:
    note = run / "huggingface" / "notes.txt"
    note.write_text("precious")
    with pytest.raises(UserError, match=r"huggingface/notes\.txt"):
        begin(run)
    note.unlink()
    (run / "huggingface" / "config.json").write_text("mended by hand")
    with pytest.raises(UserError, match=r"huggingface/config\.json"):
        begin(run)
    assert (run / "huggingface" / "config.json").read_text() == "mended by hand"


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "huggingface/notes.txt",
        "checkpoints/notes.txt",
        "checkpoints/1/notes.txt",
        "checkpoints/2/notes.txt",
        "checkpoints/5.partial/notes.txt",
        "tensorboard/notes.txt",
    ],
)
def test_every_file_of_a_run_is_known(run: Path, name: str) -> None:
    assert foreign_files(run) == []
    path = run / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("precious")
    assert any(name.startswith(found) for found in foreign_files(run))


def test_lines_that_no_run_writes_are_not_cut_off(run: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\nmy notes\n')
    with pytest.raises(UserError, match="line 2"):
        MetricsWriter(run, 1, tensorboard=False)
    assert path.read_text().endswith("my notes\n")


def test_a_run_is_not_removed_by_its_mark_alone(run: Path) -> None:
    """The mark lists what `begin` wrote; checkpoints are not in it."""
    remove_marked(run)
    assert checkpoints.verify(run / "checkpoints" / "1") == []


@pytest.mark.parametrize("name", ["wandb/notes.txt", "tensorboard/plugins/profile/notes.txt"])
def test_folders_that_others_write_into_are_the_runs_only_if_it_asked(run: Path, name: str) -> None:
    (run / name).parent.mkdir(parents=True)
    (run / name).write_text("precious")
    assert foreign_files(run) == []
    assert foreign_files(run, wandb=False, profile=False)
