"""Tasks of the harness over local JSON lines instead of the hub.

DIR/TASK/SPLIT.jsonl, one object a line with the columns of the task's dataset; all subjects of
MMLU together in DIR/mmlu/SPLIT.jsonl, with the column `subject`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from jinja2 import Environment, meta
from lm_eval.api.task import ConfigurableTask

from chopjax.errors import UserError

MMLU = "cais/mmlu"


class LocalTask(ConfigurableTask):
    """A task of the harness. Where its metadata have `data_dir`, its documents come from there."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        folder = (self.config.metadata or {}).get("data_dir")
        if folder is None:
            super().download(dataset_kwargs, **kwargs)
            return
        about = {key: self.get_config(key) for key in (*SPLITS, "task", *DATASET)}
        self.dataset = {
            split: read_rows(path, subject(about))
            for split, path in files(about, Path(folder)).items()
            if path.is_file()
        }
        for split, rows in self.dataset.items():
            if gone := sorted(self._columns() - set(rows.column_names)):
                raise UserError(
                    f"{files(about, Path(folder))[split]}: no column {', '.join(gone)}; it has "
                    f"{', '.join(sorted(rows.column_names))}"
                )

    def _columns(self) -> set[str]:
        """The columns that the task's templates name; none where code makes others of them."""
        if self.config.process_docs is not None:
            return set()
        found: set[str] = set()
        for key in ("doc_to_text", "doc_to_choice", "doc_to_target"):
            template = self.get_config(key)
            if isinstance(template, str):
                if template.isidentifier():  # a column's name stands for the column
                    found.add(template)
                found |= meta.find_undeclared_variables(Environment().parse(template))
        return found

    def fewshot_docs(self) -> Any:
        """As the harness chooses them; None where they are in a file that is not there."""
        return super().fewshot_docs() if self._examples() in (None, *self.dataset) else None

    def check_examples(self) -> None:
        """Raises UserError where the task wants examples and their file is not there."""
        split = self._examples()
        if self.get_config("num_fewshot") and split not in (None, *self.dataset):
            about = {key: self.get_config(key) for key in (*SPLITS, "task", *DATASET)}
            path = files(about, Path(self.config.metadata["data_dir"]))[str(split)]
            raise UserError(
                f"task {self.task_name}: the examples for {self.get_config('num_fewshot')} shots "
                f"are missing: {where_from(path, about, str(split))}"
            )

    def _examples(self) -> str | None:
        """The split that examples come from."""
        if self.fewshot_cfg.samples is not None:
            return None
        named = (self.fewshot_cfg.split, *(self.get_config(key) for key in SPLITS))
        return next((split for split in named if split), None)


SPLITS = ("training_split", "validation_split", "test_split")
DATASET = ("dataset_path", "dataset_name", "fewshot_split")


def files(about: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Split → file, of all splits that a task's config names."""
    name = "mmlu" if about.get("dataset_path") == MMLU else str(about["task"])
    splits = [about.get(key) for key in (*SPLITS, "fewshot_split")]
    return {split: folder / name / f"{split}.jsonl" for split in splits if split}


def missing(about: Mapping[str, Any], folder: Path) -> dict[Path, str]:
    """The file with the documents to score, if it is not there, and where it comes from."""
    split = about.get("test_split") or about.get("validation_split")
    if not split:
        return {}
    path = files(about, folder)[split]
    return {} if path.is_file() else {path: where_from(path, about, split)}


def where_from(path: Path, about: Mapping[str, Any], split: str) -> str:
    """A file that is needed, and the part of a dataset of the hub that belongs there."""
    name = "all" if about.get("dataset_path") == MMLU else about.get("dataset_name")
    config = f", config {name}" if name else ""
    return f"{path}: dataset {about.get('dataset_path')}{config}, split {split}"


def subject(about: Mapping[str, Any]) -> str | None:
    """Of an MMLU task, the value of the column `subject` in its rows."""
    return str(about["dataset_name"]) if about.get("dataset_path") == MMLU else None


def read_rows(path: Path, of_subject: str | None = None) -> datasets.Dataset:
    """The objects of a file. Raises UserError that names the line that is none."""
    rows = _rows(path, path.stat().st_mtime_ns)
    if of_subject is not None:
        rows = tuple(row for row in rows if row.get("subject") == of_subject)
    if not rows:
        raise UserError(f"{path}: no rows{f' of subject {of_subject}' if of_subject else ''}")
    return datasets.Dataset.from_list(list(rows))


@functools.lru_cache(maxsize=4)  # MMLU's subjects share a file
def _rows(path: Path, modified: int) -> tuple[dict[str, Any], ...]:
    del modified  # part of the cache's key
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not a JSON object")
            except ValueError as error:
                raise UserError(f"{path}, line {number}: {error}") from None
            rows.append(row)
    return tuple(rows)
