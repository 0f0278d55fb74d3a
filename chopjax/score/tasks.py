"""Tasks by name: the harness's own and those of further folders, and what to say without one."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
from lm_eval.tasks import TaskManager

from chopjax.errors import UserError

FEWSHOT_SEED = 1234  # the harness's default
Tasks = dict[str, Any]  # {"tasks": {name: Task}, "groups": {name: Group}}


def load_tasks(
    names: Sequence[str],
    include_path: str | Path | None = None,
    num_fewshot: int | None = None,
) -> Tasks:
    """Tasks and groups, ready for the harness's evaluate(). Names may be patterns (`mmlu_*`).

    num_fewshot: examples in the prompt, except where a task sets it to 0 itself.
    Raises UserError for unknown names, with similar ones, and for datasets that cannot be had.
    """
    if not names:
        raise UserError("no tasks; name some with --tasks, separated by commas")
    _be_quiet()
    manager, found = _find(names, include_path)
    loaded: Tasks = {"tasks": {}, "groups": {}}
    for name in found:
        part = _load(manager, name)
        loaded["tasks"] |= part["tasks"]
        loaded["groups"] |= part["groups"]
    for task in loaded["tasks"].values():
        usual = task.get_config("num_fewshot")
        if num_fewshot is not None and usual != 0:
            task.set_config(key="num_fewshot", value=num_fewshot)
        elif usual is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return loaded


def _find(names: Sequence[str], include_path: str | Path | None) -> tuple[TaskManager, list[str]]:
    """The task index that knows all names, and the names that they stand for."""
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"--include-path {include_path}: no such folder")
    if include_path is not None:
        # Reading the harness's thousands of task files takes seconds; often it is not needed.
        manager = TaskManager(include_path=str(include_path), include_defaults=False)
        if all(manager.match_tasks([name]) for name in names):
            return manager, _unique(manager, names)
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown:
        raise UserError("\n".join(_unknown(name, manager.all_tasks) for name in unknown))
    return manager, _unique(manager, names)


def _unique(manager: TaskManager, names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(match for name in names for match in manager.match_tasks([name])))


def _unknown(name: str, known: Sequence[str]) -> str:
    similar = difflib.get_close_matches(name, known, n=5, cutoff=0.6)
    hint = f"; did you mean {', '.join(similar)}?" if similar else ""
    return f"--tasks: {name} is not a task of lm-evaluation-harness nor of --include-path{hint}"


def _load(manager: TaskManager, name: str) -> Tasks:
    # Whatever the libraries for datasets and networks raise: the harness runs them all in here.
    try:
        return manager.load([name])
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, (TypeError, AttributeError, NameError, AssertionError)):
            raise
        logging.getLogger(__name__).debug("loading task %s", name, exc_info=True)
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(
            f"task {name}: its dataset{_dataset(manager, name)} cannot be loaded: {reason}\n"
            "Fetch it once with a network (it is then in the datasets cache), or score from local "
            "files with a task file of your own (--include-path)."
        ) from error


def _dataset(manager: TaskManager, name: str) -> str:
    """The dataset of a task, as its file names it, with a space before it; or nothing."""
    entry = manager.task_index.get(name)
    if entry is None or entry.yaml_path is None:
        return ""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(entry.yaml_path, resolve_func=False, recursive=True)
    parts = [str(config[key]) for key in ("dataset_path", "dataset_name") if config.get(key)]
    return f" {' / '.join(parts)}" if parts else ""


def _be_quiet() -> None:
    """The libraries' own bars and notes would drown ours; errors still come through."""
    datasets.disable_progress_bars()
    for name in ("lm_eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
