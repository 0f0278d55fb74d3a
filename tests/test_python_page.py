"""docs/python.md runs as it stands, on a tiny checkpoint, and does what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import checkpoints
import documents
import pytest
import transformers

TASK = """
task: my_task
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{endings}}}}"
doc_to_target: label
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the page takes for granted."""
    folder = tmp_path_factory.mktemp("page")
    checkpoints.write_tokenizer(checkpoints.write_checkpoint(folder / "parent"))
    sentence = "the cat sat on the mat, and the dog sat on the log. "
    for name, count in (("corpus", 60), ("held_out", 3)):
        lines = [json.dumps({"text": f"{i}: {sentence * (3 + i % 5)}"}) for i in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "my_tasks").mkdir()
    data = folder / "my_tasks" / "documents.jsonl"
    rows = [{"context": "the cat", "endings": [" sat", " mat"], "label": i % 2} for i in range(6)]
    data.write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "my_tasks" / "my_task.yaml").write_text(TASK.format(data=data))
    return folder


def test_the_page_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    page = documents.ROOT / "docs" / "python.md"
    names: dict[str, Any] = {}
    documents.run_python(page, names, model="parent", keep="0,2-3")
    # Look at a model
    assert "no-such-folder" in capsys.readouterr().out
    assert names["found"].config.num_layers == 4
    # Choose layers by measurement
    assert names["chosen"].keep == (0, 3)  # the first and the last stay, two go
    assert len(names["analysis"]["measures"]["influence"]) == 4
    # Remove layers, heal
    assert names["done"].removed_layers == (1, 2)
    assert names["summary"]["steps"] == 20
    assert names["stores"]["held_out"].num_documents > 0
    rows = [json.loads(row) for row in (place / "runs/heal/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] - 0.5
    healed = transformers.AutoModelForCausalLM.from_pretrained(place / "healed")
    assert healed.config.num_hidden_layers == 2
    # Perplexity and tasks
    assert 0 < names["figures"]["nats_per_token"] < losses[0]
    assert names["results"]["results"]["my_task"]["acc,none"] == 0.5
    assert names["theirs"]["results"]["my_task"]["acc,none"] == 0.5
    # A whole command
    assert names["code"] == 0
    record = json.loads((place / "by-list" / "chopjax.json").read_text())
    assert record["kept_layers"] == [0, 2, 3]


def test_every_function_in_the_table_has_an_example() -> None:
    text = (documents.ROOT / "docs" / "python.md").read_text()
    rows = re.findall(r"^\| (.*?) \|", text, flags=re.MULTILINE)[2:]
    named = {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    assert len(named) > 10
    code = "\n".join(documents.blocks(text, "python"))
    code += (documents.ROOT / "docs" / "flax.md").read_text()
    assert [name for name in named if not re.search(rf"\b{re.escape(name)}\b[.(]", code)] == []
