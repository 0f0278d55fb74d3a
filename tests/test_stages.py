"""Stages run once, resume after a kill, and run again when something they depend on changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chopjax.errors import UserError
from chopjax.stages import Stage, run_stages


class Recorder:
    """Two stages, the second built on the first, that note what is done to them."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.settings: dict[str, dict[str, Any]] = {"a": {"x": 1}, "b": {"y": 1}}
        self.fail = ""

    def stages(self) -> list[Stage]:
        return [self._stage("a", ()), self._stage("b", ("a",))]

    def _stage(self, name: str, needs: tuple[str, ...]) -> Stage:
        def run() -> dict[str, Any]:
            self.calls.append(f"run {name}")
            if self.fail == name:
                raise KeyboardInterrupt
            return {"from": self.settings[name]}

        return Stage(
            name, self.settings[name], needs, run, lambda: self.calls.append(f"clean {name}")
        )

    def go(self, workdir: Path) -> list[str]:
        self.calls = []
        assert run_stages(workdir, self.stages()) == {n: {"from": self.settings[n]} for n in "ab"}
        return self.calls


def test_done_stages_are_skipped_and_keep_their_results(tmp_path: Path) -> None:
    recorder = Recorder()
    assert recorder.go(tmp_path) == ["clean a", "run a", "clean b", "run b"]
    assert recorder.go(tmp_path) == []


def test_a_changed_setting_redoes_the_stage_and_what_builds_on_it(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.go(tmp_path)
    recorder.settings["b"] = {"y": 2}
    assert recorder.go(tmp_path) == ["clean b", "run b"]
    recorder.settings["a"] = {"x": 2}
    assert recorder.go(tmp_path) == ["clean a", "run a", "clean b", "run b"]


def test_an_interrupted_stage_goes_on_without_cleaning(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.fail = "b"
    with pytest.raises(KeyboardInterrupt):
        run_stages(tmp_path, recorder.stages())
    recorder.fail = ""
    assert recorder.go(tmp_path) == ["run b"]


def test_an_interrupted_stage_with_new_settings_is_cleaned(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.fail = "b"
    with pytest.raises(KeyboardInterrupt):
        run_stages(tmp_path, recorder.stages())
    recorder.fail = ""
    recorder.settings["b"] = {"y": 3}
    assert recorder.go(tmp_path) == ["clean b", "run b"]


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    Recorder().go(tmp_path)
    (tmp_path / "stages" / "a.json").write_text('{"finger')
    with pytest.raises(UserError, match=r"a\.json"):
        run_stages(tmp_path, Recorder().stages())


def test_a_stage_whose_output_is_gone_runs_again(tmp_path: Path) -> None:
    output = tmp_path / "out"

    def run() -> dict[str, Any]:
        output.mkdir()
        return {}

    stage = Stage("a", {}, (), run, lambda: None, outputs=(output,))
    run_stages(tmp_path, [stage])
    run_stages(tmp_path, [stage])
    output.rmdir()
    run_stages(tmp_path, [stage])
    assert output.is_dir()
