"""The training run of a point goes when it is scored, and only that."""

from __future__ import annotations

from pathlib import Path

import pytest

from chopjax.disk.mark import begin_mark
from chopjax.runs.healing import remove_run
from chopjax.train.settings import LogSettings


def test_a_run_that_holds_notes_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    begin_mark(run, "train")
    (run / "notes.txt").write_text("precious")
    remove_run(run, LogSettings())
    assert (run / "notes.txt").read_text() == "precious"
    assert "notes.txt" in capsys.readouterr().err
    (run / "notes.txt").unlink()
    for _ in range(2):
        remove_run(run, LogSettings())
        assert not run.exists()
