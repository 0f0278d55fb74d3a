"""Records are found as they were written; what others wrote in their place is named and stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chopjax.errors import UserError
from chopjax.runs.inputs import digest
from chopjax.runs.records import (
    AnalysisRecords,
    PointRecords,
    StageRecords,
    _append,
    read_rows,
    stage_name,
)
from chopjax.runs.stages import Record, Stage


def stage(name: str = "b") -> Stage:
    return Stage(name, {"y": 1}, (), dict)


DONE = Record("now", {"y": 1}, {"loss": 2.5}, 1.5)


@pytest.mark.parametrize("record", [DONE, Record("now", {"y": 1})])
def test_a_stage_is_found_as_it_was_left_and_from_its_copy(tmp_path: Path, record: Record) -> None:
    records = StageRecords(tmp_path)
    assert records.find(stage(), ["now"]) is None
    records.write(stage(), record)
    assert records.find(stage(), ["now"]) == record
    (tmp_path / "stages" / "b.json").unlink()
    assert records.find(stage(), ["now"]) == record


def test_a_record_of_an_earlier_chopjax_has_no_digest(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    content = {"fingerprint": "now", "settings": {"y": 1}, "seconds": 1.5, "result": {"loss": 2.5}}
    (tmp_path / "stages" / "b.json").write_text(json.dumps(content))
    assert StageRecords(tmp_path).find(stage(), ["now"]) == DONE


DAMAGES = ['{"finger', "", "[1]", "null", '{"fingerprint": 1, "settings": {}}', "\xff" * 9]
DAMAGES += ['{"fingerprint": "x", "settings": {}, "result": 3, "seconds": 1}', "[" * 100_000]
DAMAGES += ['"digest"', '{"fingerprint": "x", "settings": {}, "result": {}}']


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("place", ["stages/b.json", "stages/copies/b.json"])
def test_a_damaged_record_is_named_and_the_advice_costs_nothing(
    tmp_path: Path, damage: str, place: str
) -> None:
    records = StageRecords(tmp_path)
    records.write(stage(), DONE)
    (tmp_path / place).write_text(damage, encoding="latin-1")
    with pytest.raises(UserError, match=rf"{place}.*damaged.*Delete it"):
        records.find(stage(), ["now"])
    (tmp_path / place).unlink()
    assert records.find(stage(), ["now"]) == DONE


@pytest.mark.parametrize("place", ["stages/b.json", "stages/copies/b.json"])
def test_an_edited_record_is_damaged(tmp_path: Path, place: str) -> None:
    """A digit that changed is no result."""
    records = StageRecords(tmp_path)
    records.write(stage(), DONE)
    path = tmp_path / place
    path.write_text(path.read_text().replace('"y": 1', '"y": 7'))
    with pytest.raises(UserError, match=rf"{place}.*damaged.*not as it was written"):
        records.find(stage(), ["now"])


def test_a_linked_record_is_damaged(tmp_path: Path) -> None:
    records = StageRecords(tmp_path)
    records.write(stage(), DONE)
    path = tmp_path / "stages" / "b.json"
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(UserError, match=r"b\.json.*link"):
        records.find(stage(), ["now"])


# ------------------------------------------------------------------------------- Of a sweep


def row(key: str, loss: float, strategy: str = "input") -> dict[str, Any]:
    figures: dict[str, Any] = {"loss": loss, "perplexity": 9.0, "bits_per_byte": 1.0, "tokens": 7}
    figures |= {"loss_over_log_vocabulary": 0.5, "accuracy": {}, "chance": {}}
    return figures | {
        "strategy": strategy, "remove": 1, "keep": "0-2", "healed": False, "seed": 0, "key": key,
    }  # fmt: skip


def test_a_point_is_found_by_what_it_depends_on_now_or_earlier(tmp_path: Path) -> None:
    path, point = tmp_path / "points.jsonl", stage(stage_name("input", 0))
    records = PointRecords(path)
    for key, loss in (("earlier", 1.0), ("other", 2.0)):
        records.write(point, Record(key, {}))
        records.write(point, Record(key, {}, row(key, loss)))
    assert records.figures["other"] == row("other", 2.0), "known while the sweep runs"
    records = PointRecords(path)
    found = records.find(point, ["now", "earlier"])
    assert found == Record("now", point.settings, row("earlier", 1.0))
    assert records.find(point, ["now"]) is None
    assert records.find(stage(stage_name("output", 0)), ["earlier"]) is None
    assert records.figures["earlier"]["loss"] == 1.0, "though another strategy may take its figures"


def test_what_a_killed_sweep_left_of_a_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    whole = json.dumps(row("a", 1.0)) + "\n"
    path.write_text(whole + whole[:20])
    assert read_rows(path) == [row("a", 1.0)]
    PointRecords(path)
    assert path.read_text() == whole


ROW_WITH_WORDS = '{"loss": "low", "strategy": "random", "seed": 0, "key": "k"}\n'


@pytest.mark.parametrize(
    "content", ["precious", "precious\n", '{"mine": 1}\n', '{"mine": 1}', "[1]\n", ROW_WITH_WORDS]
)
def test_points_that_no_sweep_wrote_are_not_cut(tmp_path: Path, content: str) -> None:
    path = tmp_path / "points.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=r"points\.jsonl"):
        read_rows(path)
    assert path.read_text() == content


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said() -> None:
    with pytest.raises(UserError, match=r"/dev/full: No space left.*start again"):
        _append(Path("/dev/full"), {"loss": 1.0})


def test_an_analysis_serves_where_it_has_the_measures(tmp_path: Path) -> None:
    path, asked = tmp_path / "analysis-0" / "analysis.json", {"parent": "p"}
    measures = {"sleb": [{"layer": 3}, {"layer": 1}]}
    analysis = {"settings": {"measures": ["sleb", "taylor"]}, "measures": measures}
    records = AnalysisRecords(path, ["taylor"])
    assert records.find(stage(), []) is None
    records.write(stage(), Record("now", asked))
    assert not path.exists()
    records.write(stage(), Record("now", asked, analysis))
    found = records.find(stage(), [])
    assert found == Record(digest(asked), asked, analysis | {"asked": asked})
    assert AnalysisRecords(path, ["perplexity"]).find(stage(), []) is None
    assert AnalysisRecords(path, ["sleb"], 2).find(stage(), []) == found
    assert AnalysisRecords(path, ["sleb"], 3).find(stage(), []) is None
    path.write_text("precious")
    with pytest.raises(UserError, match="not what a sweep writes"):
        records.find(stage(), [])
    assert path.read_text() == "precious"
