"""Task files and data for benchmarks/score.py: the harness's own prompts over local JSONL."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

HEAD = """
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {files}}}
output_type: multiple_choice
metadata: {{version: 1.0}}
"""
ACC = "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
ACC_NORM = """
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""


@dataclasses.dataclass(frozen=True)
class Task:
    """files: below the data folder. prompt: YAML as in the harness's task. documents: of the
    whole task."""

    files: tuple[str, ...]
    documents: int
    prompt: str
    shots: int = 0


TASKS = {
    "hellaswag": Task(
        ("hellaswag/validation.jsonl",),
        10_042,
        'test_split: test\ndoc_to_text: "{{query}}"\ndoc_to_target: gold\ndoc_to_choice: choices\n'
        + ACC_NORM,
    ),
    "arc_easy": Task(
        ("arc_easy/test.jsonl",),
        2376,
        'test_split: test\ndoc_to_text: "Question: {{question}}\\nAnswer:"\n'
        'doc_to_target: "{{choices.label.index(answerKey)}}"\ndoc_to_choice: "{{choices.text}}"\n'
        + ACC_NORM,
    ),
    "piqa": Task(
        ("piqa/validation.jsonl",),
        1838,
        'test_split: test\ndoc_to_text: "Question: {{goal}}\\nAnswer:"\ndoc_to_target: label\n'
        'doc_to_choice: "{{[sol1, sol2]}}"\n' + ACC_NORM,
    ),
    "winogrande": Task(  # the two options stand before the text that is scored
        ("winogrande/validation.jsonl",),
        1267,
        "test_split: test\ndoc_to_text: !function winogrande.doc_to_text\n"
        "doc_to_target: !function winogrande.doc_to_target\n"
        "doc_to_choice: !function winogrande.doc_to_choice\n" + ACC,
    ),
    "mmlu": Task(
        ("mmlu/dev.jsonl", "mmlu/test.jsonl"),
        14_042,
        "test_split: test\nfewshot_split: dev\nfewshot_config: {sampler: first_n}\n"
        'doc_to_text: "{{question.strip()}}\\nA. {{choices[0]}}\\nB. {{choices[1]}}\\n'
        'C. {{choices[2]}}\\nD. {{choices[3]}}\\nAnswer:"\n'
        "doc_to_choice: [A, B, C, D]\ndoc_to_target: answer\n" + ACC,
        shots=5,
    ),
}  # fmt: skip
# As in the harness: with templates it would compile Jinja eight times a document.
WINOGRANDE = """
def doc_to_text(doc):
    return {"1": 0, "2": 1}[doc["answer"]]

def doc_to_target(doc):
    return doc["sentence"].split("_", 1)[1].strip()

def doc_to_choice(doc):
    before = doc["sentence"].split("_", 1)[0]
    return [before + option for option in (doc["option1"], doc["option2"])]
"""
ZERO_SHOT = ("hellaswag", "arc_easy", "piqa", "winogrande")


def write_tasks(folder: Path, data: Path, name: str, limit: int) -> tuple[Path, list[str]]:
    """(folder for --include-path, names of the harness's tasks): about `limit` documents.

    They are spread evenly over the file. Of MMLU whole subjects are taken, because the examples in
    the prompt are those of the subject: subjects of all sizes, as many as make about `limit`; of
    the only one the first `limit` documents.
    """
    folder.mkdir(parents=True)
    task = TASKS[name]
    if name != "mmlu":
        rows = list(_rows(data / task.files[0]))
        step = max(1, len(rows) / limit)
        chosen = [rows[int(n * step)] for n in range(min(limit, len(rows)))]
        _write(folder, name, task, {"test": chosen})
        (folder / "winogrande.py").write_text(WINOGRANDE, encoding="utf-8")
        return folder, [name]
    dev, test = (list(_rows(data / file)) for file in task.files)
    by_size: dict[str, int] = {}
    for row in test:
        by_size[row["subject"]] = by_size.get(row["subject"], 0) + 1
    names = []
    for subject in subjects(by_size, limit):
        parts = {
            split: [row for row in rows if row["subject"] == subject][:most]
            for split, rows, most in (("dev", dev, None), ("test", test, limit))
        }
        words = subject.replace("_", " ")
        about = "The following are multiple choice questions (with answers) about"
        extra = f'description: "{about} {words}.\\n\\n"\n'
        _write(folder, f"mmlu_{subject}", task, parts, extra)
        names.append(f"mmlu_{subject}")
    return folder, names


def subjects(sizes: dict[str, int], limit: int) -> list[str]:
    """Evenly spread over the subjects in order of size, as many as hold at most `limit`
    documents; at least one."""
    order = sorted(sizes, key=lambda subject: (sizes[subject], subject))
    for count in range(len(order), 1, -1):
        chosen = [order[int((n + 0.5) * len(order) / count)] for n in range(count)]
        if sum(sizes[subject] for subject in chosen) <= limit:
            return chosen
    return order[:1]


def _rows(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _write(
    folder: Path, name: str, task: Task, parts: dict[str, list[dict]], extra: str = ""
) -> None:
    files = {split: str(folder / f"{name}.{split}.jsonl") for split in parts}
    for split, rows in parts.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        Path(files[split]).write_text(text, encoding="utf-8")
    head = HEAD.format(task=name, files=json.dumps(files))
    (folder / f"{name}.yaml").write_text(head + extra + task.prompt, encoding="utf-8")
