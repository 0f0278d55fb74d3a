"""Stages run once, resume after a kill, and run again when something they depend on changed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from chopjax.disk.atomic import new_folder
from chopjax.errors import UserError
from chopjax.runs.records import StageRecords
from chopjax.runs.stages import Stage, fingerprints_of, look, run_all


def run_stages(workdir: Path, *ways: list[Stage]) -> dict[str, Any]:
    """As `chopjax run` does. ways: the stages as they are recorded now, and earlier."""
    records = StageRecords(workdir)
    return run_all(records, look(records, ways[0], fingerprints_of(*ways)))


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
            name, self.settings[name], needs, run, clean=lambda: self.calls.append(f"clean {name}")
        )

    def go(self, workdir: Path) -> list[str]:
        self.calls = []
        assert run_stages(workdir, self.stages()) == {n: {"from": self.settings[n]} for n in "ab"}
        return self.calls


def test_done_stages_are_skipped_and_keep_their_results(tmp_path: Path) -> None:
    recorder = Recorder()
    assert recorder.go(tmp_path) == ["run a", "run b"]
    assert recorder.go(tmp_path) == []


def test_what_holds_too_little_is_done_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = Recorder().stages()
    run_stages(tmp_path, [first, second])
    asked: list[str] = []

    def lacks() -> str:
        asked.append("a")
        return "rounds"

    capsys.readouterr()
    run_stages(tmp_path, [dataclasses.replace(first, lacks=lacks), second])
    said = capsys.readouterr().err
    assert "a: again, because it has too few rounds" in said
    assert "b: done before" in said, "that depends on its settings alone"
    assert asked == ["a"]


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


def test_a_damaged_record_is_named_before_any_work(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.go(tmp_path)
    (tmp_path / "stages" / "b.json").write_text('{"finger')
    recorder.settings["a"] = {"x": 2}  # would run before it
    recorder.calls = []
    with pytest.raises(UserError, match=r"stages/b\.json.*damaged.*Delete it"):
        run_stages(tmp_path, recorder.stages())
    assert recorder.calls == []
    recorder.settings["a"] = {"x": 1}
    (tmp_path / "stages" / "b.json").unlink()
    assert recorder.go(tmp_path) == [], "the advice costs nothing"


def test_what_was_damaged_since_is_not_read(tmp_path: Path) -> None:
    recorder, out = Recorder(), tmp_path / "out"
    first, second = recorder.stages()

    def run() -> dict[str, Any]:
        with new_folder(out, "chop") as folder:
            (folder / "weights").write_text("1")
        return {}

    stages = [dataclasses.replace(first, run=run, outputs=(out,)), second]
    run_stages(tmp_path / "run", stages)
    (out / "weights").write_text("2")
    assert run_stages(tmp_path / "run", stages), "nothing is read"
    recorder.settings["b"] = {"y": 2}
    stages[1] = recorder.stages()[1]
    recorder.calls = []
    with pytest.raises(UserError, match=r"changed since.*\n.*/out: weights"):
        run_stages(tmp_path / "run", stages)
    assert recorder.calls == []


@pytest.mark.parametrize("place", ["stages", "stages/copies", "models"])
def test_files_in_the_place_of_folders_are_named_before_any_work(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("precious")
    recorder = Recorder()
    first, second = recorder.stages()
    stages = [first, dataclasses.replace(second, outputs=(tmp_path / "models" / "healed",))]
    with pytest.raises(UserError, match=str(tmp_path / place)):
        run_stages(tmp_path, stages)
    assert recorder.calls == []
    assert (tmp_path / place).read_text() == "precious"


def test_others_files_in_the_place_of_records_stay(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "b.json").write_text("precious")
    with pytest.raises(UserError, match=r"b\.json"):
        run_stages(tmp_path, Recorder().stages())
    assert (tmp_path / "stages" / "b.json").read_text() == "precious"
    assert not (tmp_path / "stages" / "a.json").exists()


def test_what_stands_in_a_stages_place_is_named_before_any_work(tmp_path: Path) -> None:
    recorder = Recorder()
    places = [tmp_path / name for name in ("out", "scores", "empty", "absent")]
    for path in places[:2]:
        path.mkdir()
        (path / "mine").write_text("precious")
    places[2].mkdir()
    first, second = recorder.stages()
    stages = [
        dataclasses.replace(first, places=(places[2], places[3])),
        dataclasses.replace(second, outputs=(places[0],), places=(places[1],)),
    ]
    with pytest.raises(UserError, match=r"/out\n.*/scores\n"):
        run_stages(tmp_path, stages)
    assert recorder.calls == []
    for path in places[:2]:
        (path / "mine").unlink()
    run_stages(tmp_path, stages)
    (places[0] / "made").touch()
    assert recorder.calls == ["run a", "run b"]
    run_stages(tmp_path, stages)


def test_a_redo_that_would_delete_others_files_is_refused_before_any_work(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.go(tmp_path)

    def check() -> None:
        raise UserError("holds notes.txt")

    first, second = recorder.stages()
    stages = [first, dataclasses.replace(second, check=check)]
    run_stages(tmp_path, stages)
    recorder.calls = []
    recorder.settings["a"] = {"x": 5}
    first, second = recorder.stages()
    with pytest.raises(UserError, match=r"notes\.txt"):
        run_stages(tmp_path, [first, dataclasses.replace(second, check=check)])
    assert recorder.calls == []


def test_records_of_an_earlier_chopjax_are_taken_and_brought_up_to_date(tmp_path: Path) -> None:
    old, new = Recorder(), Recorder()
    old.settings = {"a": {"x": "by time"}, "b": {"y": 1}}
    old.go(tmp_path)
    new.calls = []
    run_stages(tmp_path, new.stages(), old.stages())
    assert new.calls == []
    run_stages(tmp_path, new.stages())
    assert new.calls == []


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
