"""benchmarks/rivals.py: what is made from what, and the table, without making anything."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import checkpoints
import pytest

from chopjax.commands import parser

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "rivals.py"


@pytest.fixture(scope="module")
def program() -> Any:
    spec = importlib.util.spec_from_file_location("rivals", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_is_made_from_another_by_a_verb(program: Any, tmp_path: Path) -> None:
    model = checkpoints.write_checkpoint(tmp_path / "parent", intermediate_size=64)
    found = program.rivals(model, Path("text.jsonl"), 4, 16)
    rows = found + program.healed(found, 300)
    before = set()
    for row in rows:
        assert row.name not in before
        if row.words:
            assert row.of in before
            where = ["model", "out"]
            if row.words[0] == "train":
                where = ["--config", "configs/heal.py", "--workdir", "run"]
            parser.parse([row.words[0], *where, *row.words[1:]])
        before.add(row.name)
    by_name = {row.name: row for row in rows}
    assert by_name["sparsegpt 2:4 + healed"].words == ("train", "--config.masks=fixed")
    assert by_name["chop by input + healed + int8"].of == "chop by input + healed"
    assert "int8 + healed" not in by_name


def test_the_mean_accuracy_drops_relative_to_the_parents(program: Any) -> None:
    size = {"parameters": 4, "not_zero": 4, "bytes": 16}
    accuracies = [{task: [value, 0.01] for task in program.TASKS} for value in (0.5, 0.4)]
    rows = {
        "parent": size | {"loss": 3.0} | accuracies[0],
        "chop": size | {"loss": 3.5} | accuracies[1],
    }
    last = program.markdown(rows)[-1]
    assert last.endswith("| 3.500 | +0.500 |" + 3 * " 0.400 ± 0.010 |" + " 0.400 | 20.0% |")
