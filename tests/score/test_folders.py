"""Where results go: readable, one folder a model, and nobody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from chopjax.errors import UserError
from chopjax.score.folders import model_folder


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    for name in ("x/model", "y/model", "z/y/model", "out", "model"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path)
    assert model_folder(out, "x/model") == out / "model"
    assert model_folder(out, "y/model") == out / "y__model"
    assert model_folder(out, "z/y/model") == out / "z__y__model"
    # The same at every call, however it is spelled.
    monkeypatch.chdir(tmp_path / "x")
    assert model_folder(out, "model") == out / "model"
    assert model_folder(out, "../y/model/") == out / "y__model"
    monkeypatch.chdir("model")
    assert model_folder(out, ".") == out / "model"
    assert model_folder(out, "owner/name") == out / "owner__name", "a hub id, as the harness does"
    assert model_folder(out, "owner/name") == out / "owner__name"


def test_what_is_there_already(tmp_path: Path) -> None:
    for name in ("x/model", "out/model"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "out" / "model" / "notes.txt").write_text("of the user's")
    model = str(tmp_path / "x" / "model")
    assert model_folder(tmp_path / "out", model) == tmp_path / "out" / "x__model"
    assert [p.name for p in (tmp_path / "out" / "model").iterdir()] == ["notes.txt"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model").write_text("a file")
    assert model_folder(tmp_path / "other", model) == tmp_path / "other" / "x__model"
    with pytest.raises(UserError, match="Not a directory"):
        model_folder(tmp_path / "other" / "model", model)
