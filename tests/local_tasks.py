"""Two tiny tasks of our own, as files, for tests that run without shared data."""

from __future__ import annotations

import json
from pathlib import Path

CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
ROLLING = """
task: tiny_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: bits_per_byte}}
metadata: {{version: 1.0}}
"""


def write_tasks(folder: Path, documents: int = 6) -> Path:
    """Task files and data; returns the folder for --include-path."""
    words = "the cat sat on the mat and looked at a small bird in the old tree".split()
    rows = [
        {
            "question": " ".join(words[: 3 + n % 9]) + "?",
            "choices": [" ".join(words[k : k + 1 + (n + k) % 4]) for k in range(2 + n % 3)],
            "answer": n % 2,
            "text": " ".join(words[n % 5 :] * (1 + 9 * (n % 2))),
        }
        for n in range(documents)
    ]
    folder.mkdir(exist_ok=True)
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("choice", CHOICE), ("rolling", ROLLING)):
        (folder / f"{name}.yaml").write_text(text.format(data=data))
    return folder
