"""benchmarks/growth.py: the work that it doubles is the work that it names."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from chopjax.checkpoint.describe import describe
from chopjax.data.store import open_store

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def program() -> Any:
    sys.path.insert(0, str(BENCHMARKS))  # where its own parts are
    spec = importlib.util.spec_from_file_location("growth", BENCHMARKS / "growth.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCHMARKS))


def test_all_of_the_work_is_done(program: Any, tmp_path: Path) -> None:
    plan = program.requests(tmp_path, 808)()
    assert sorted(n for path in plan.paths for n in path.requests) == list(range(808))
    # The second hundred of documents has examples: 400 tokens that its four choices share.
    assert sum(path.length > 400 for path in plan.paths) == 400
    program.prepare(tmp_path, 5)()
    assert open_store(tmp_path / "store").num_documents == 5
    program.chop(tmp_path, 6)()
    assert len(list((tmp_path / "parent").glob("*.safetensors"))) == 7
    assert describe(str(tmp_path / "out")).config.num_layers == 3


def test_a_table_of_ratios(
    program: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--only requests --first 40 --doublings 1 --rounds 1 --json".split()
    monkeypatch.setattr(sys, "argv", ["growth.py", *words])
    assert program.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "requests: 40 80 requests"
    row = json.loads(lines[-1])["rows"]["requests"]
    assert row["ratios"] == [pytest.approx(row["seconds"][1] / row["seconds"][0])]
    assert min(row["peaks"]) > 1e6
