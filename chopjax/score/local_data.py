"""Tasks of the harness over local JSON lines instead of the hub.

DIR/TASK/SPLIT.jsonl, one object a line with the columns of the task's dataset; all subjects of
MMLU together in DIR/mmlu/SPLIT.jsonl, with the column `subject`. What is wrong with a row is an
error with its file and line (local_rows.py), or with the document that it makes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, meta
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from chopjax.errors import UserError, first_line
from chopjax.score.local_rows import check_present, read_rows

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
        if self._file().is_file():
            answers = self._columns("doc_to_choice", "doc_to_target")
            check_present(self._file(), subject(about), answers)

    def _file(self) -> Path:
        """The documents to score."""
        about = {key: self.get_config(key) for key in (*SPLITS, "task", *DATASET)}
        split = str(about["test_split"] or about["validation_split"])
        return files(about, Path(self.config.metadata["data_dir"]))[split]

    def _columns(self, *keys: str) -> set[str]:
        """The columns that the task's templates name; none where code makes others of them."""
        if self.config.process_docs is not None:
            return set()
        columns: set[str] = set()
        for key in keys or ("doc_to_text", "doc_to_choice", "doc_to_target"):
            template = self.get_config(key)
            if isinstance(template, str):
                if template.isidentifier():  # a column's name stands for the column
                    columns.add(template)
                columns |= meta.find_undeclared_variables(Environment().parse(template))
        return columns

    def fewshot_context(self, doc: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The prompt, as the harness makes it."""
        with self._of_users(doc):
            return super().fewshot_context(doc, *args, **kwargs)

    def construct_requests(self, doc: dict[str, Any], ctx: Any, **kwargs: Any) -> list[Instance]:
        """As the harness makes them. Raises UserError for an answer that is none of the choices."""
        with self._of_users(doc):
            if self.OUTPUT_TYPE == "multiple_choice":
                choices = self.doc_to_choice(doc)
                said = self.doc_to_text(doc) if self.multiple_input else self.doc_to_target(doc)
                for answer in said if isinstance(said, list) else [said]:
                    if not (
                        answer in choices
                        if isinstance(answer, str)
                        else answer in range(len(choices))
                    ):
                        raise ValueError(
                            f"{answer!r} is the answer, and none of {len(choices)} choices"
                        )
            asked: list[Any] = super().construct_requests(doc, ctx, **kwargs)
            return asked

    @contextlib.contextmanager
    def _of_users(self, doc: dict[str, Any]) -> Iterator[None]:
        """Whatever the task's templates and code make of a document that is not as they expect."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if (self.config.metadata or {}).get("data_dir") is None:
                raise
            told = json.dumps(doc, default=str, ensure_ascii=False)
            reason = first_line(error)
            raise UserError(
                f"{self._file()}: task {self.task_name} cannot use the document "
                f"{told[:300] + '…' if len(told) > 300 else told}: {reason[:300]}"
            ) from error

    def fewshot_docs(self) -> Any:
        """As the harness chooses them; None where they are in a file that is not there."""
        return super().fewshot_docs() if self._examples() in (None, *self.dataset) else None

    def _examples(self) -> str | None:
        """The split that examples come from."""
        if self.fewshot_cfg.samples is not None:
            return None
        named = (self.fewshot_cfg.split, *(self.get_config(key) for key in SPLITS))
        return next((split for split in named if split), None)


SPLITS = ("training_split", "validation_split", "test_split")
DATASET = ("dataset_path", "dataset_name", "fewshot_split")
# What `missing` reads of a config, and a group may say for its tasks.
NEEDS = (*SPLITS, *DATASET, "num_fewshot", "fewshot_config")


def files(about: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Split → file, of all splits that a task's config names."""
    splits = [about.get(key) for key in (*SPLITS, "fewshot_split")]
    return {split: place(about, folder, split) for split in splits if split}


def place(about: Mapping[str, Any], folder: Path, split: str) -> Path:
    """The file of a split."""
    name = "mmlu" if about.get("dataset_path") == MMLU else str(about["task"])
    return folder / name / f"{split}.jsonl"


def missing(about: Mapping[str, Any], folder: Path, shots: int) -> dict[Path, str]:
    """The files that are not there, of documents to score and, with shots, of examples, and where
    each comes from."""
    wanted = [about.get("test_split") or about.get("validation_split")]
    examples = about.get("fewshot_config") or {}
    if shots and examples.get("samples") is None:
        named = (examples.get("split"), *(about.get(key) for key in ("fewshot_split", *SPLITS)))
        wanted.append(next(filter(None, named), None))
    places = {split: place(about, folder, split) for split in wanted if split}
    return {
        path: where_from(path, about, split) for split, path in places.items() if not path.is_file()
    }


def where_from(path: Path, about: Mapping[str, Any], split: str) -> str:
    """A file that is needed, and the part of a dataset of the hub that belongs there."""
    name = "all" if about.get("dataset_path") == MMLU else about.get("dataset_name")
    config = f", config {name}" if name else ""
    return f"{path}: dataset {about.get('dataset_path')}{config}, split {split}"


def subject(about: Mapping[str, Any]) -> str | None:
    """Of an MMLU task, the value of the column `subject` in its rows."""
    return str(about["dataset_name"]) if about.get("dataset_path") == MMLU else None
