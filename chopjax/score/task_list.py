"""What `chopjax score` can run, by name; with a folder of local data, what of it is complete."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from chopjax.errors import UserError
from chopjax.score import local_data
from chopjax.score.tasks import SUITES, absent, find, leaves, own_config


@dataclasses.dataclass(frozen=True)
class Listed:
    """A name for --tasks (a suite's also for --suite).

    kind: suite, group, tag (a group without a score of its own) or task. tasks: how many it comes
    down to. missing: files of the data folder that it lacks; None where no folder was asked about.
    """

    name: str
    kind: str
    tasks: int
    missing: tuple[str, ...] | None = None


def list_tasks(
    names: Sequence[str] = (),
    include_path: str | Path | None = None,
    data_dir: str | Path | None = None,
    num_fewshot: int | None = None,
) -> list[Listed]:
    """All names, or those that names and patterns mean: suites, groups, tags, tasks.

    data_dir: only what has a part of its data there, and the suites. num_fewshot: as load_tasks has
    it. Raises UserError for names and folders that are not there.
    """
    manager, matching = find(list(names) or ["*"], include_path, data_dir)
    if data_dir is not None:
        if not Path(data_dir).is_dir():
            raise UserError(f"--data-dir {data_dir}: no such folder")
        if not names:
            matching = [name for name in matching if _has_data(manager, name, Path(data_dir))]
    listed = [_listed(manager, name, data_dir, num_fewshot) for name in matching]
    order = ("suite", "group", "tag", "task")
    return sorted(listed, key=lambda each: (order.index(each.kind), each.name))


def _listed(
    manager: TaskManager, name: str, data_dir: str | Path | None, num_fewshot: int | None
) -> Listed:
    entry = manager.task_index[name]
    kind = {"GROUP": "group", "TAG": "tag"}.get(entry.kind.name, "task")
    if entry.yaml_path is not None and Path(entry.yaml_path).parent == SUITES:
        kind = "suite"
    missing = None
    if data_dir is not None:
        missing = tuple(_missing(manager, name, Path(data_dir), num_fewshot))
    return Listed(name, kind, len(leaves(manager, [name])), missing)


def _has_data(manager: TaskManager, name: str, folder: Path) -> bool:
    entry = manager.task_index.get(name)
    if entry is None:  # a task that stands in its group's own file
        return False
    if entry.kind.name in ("GROUP", "TAG"):
        suite = entry.yaml_path is not None and Path(entry.yaml_path).parent == SUITES
        parts = leaves(manager, [name])
        return suite or (bool(parts) and all(_has_data(manager, part, folder) for part in parts))
    return _folder(entry.cfg or {}, name, folder).is_dir()


def _folder(config: dict[str, Any], name: str, folder: Path) -> Path:
    """Where a task's files would lie."""
    return folder / ("mmlu" if config.get("dataset_path") == local_data.MMLU else name)


def _missing(manager: TaskManager, name: str, folder: Path, num_fewshot: int | None) -> list[str]:
    for leaf in leaves(manager, [name]):
        if not own_config(manager, leaf):
            return [f"{leaf} reads its documents with code of its own"]
    return [str(path.relative_to(folder)) for path in absent(manager, [name], folder, num_fewshot)]
