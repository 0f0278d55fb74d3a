"""Tasks by name: the harness's own, those of chopjax's suites and of further folders; and what to
say without one."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from chopjax import transformers_alone
from chopjax.checkpoint import hub_requests  # noqa: F401 - the hub's remarks go above our bars
from chopjax.disk.files import expanded
from chopjax.errors import UserError, did_you_mean, first_line, listing
from chopjax.progress import progress
from chopjax.score import local_data
from chopjax.score.local_data import LocalTask

FEWSHOT_SEED = 1234  # the harness's default
SUITES = Path(__file__).parent / "suites"
# What the suites refer to. Reading all of the harness's task files takes 8 s, these a tenth of one.
HARNESS = Path(lm_eval.tasks.__file__).parent
FOLDERS = (
    "arc glue gsm8k hellaswag mmlu/default openbookqa piqa sciq super_glue triviaqa winogrande"
).split()
Tasks = dict[str, Any]  # {"tasks": {name: Task}, "groups": {name: Group}}


@progress("look up the tasks")
def load_tasks(
    names: Sequence[str],
    include_path: str | Path | None = None,
    num_fewshot: int | None = None,
    data_dir: str | Path | None = None,
    without: Sequence[str] = (),
) -> Tasks:
    """Tasks and groups, ready for the harness's evaluate(). Names may be patterns (`mmlu_*`).

    num_fewshot: examples in the prompt, except where a task sets it to 0 itself. data_dir: read
    documents from there (see local_data.py), not from the hub. without: tasks to leave out of the
    groups named. Raises UserError for unknown names, with similar ones, and for datasets that
    cannot be had, all files at once.
    """
    if not names:
        raise UserError("no tasks; name some with --tasks, separated by commas")
    transformers_alone.with_others()
    _be_quiet()
    manager, wanted = find(names, include_path, data_dir)
    if without:
        wanted = _leave_out(manager, wanted, without)
    if data_dir is not None:
        _read_locally(manager, wanted, expanded(data_dir), num_fewshot)
    loaded: Tasks = {"tasks": {}, "groups": {}}
    for name in wanted:
        part = _load(manager, name)
        _check_same(loaded["tasks"], part["tasks"], name)
        loaded["tasks"] |= part["tasks"]
        loaded["groups"] |= part["groups"]
    unsafe = [n for n, task in loaded["tasks"].items() if getattr(task, "UNSAFE_CODE", False)]
    if unsafe:
        raise UserError(
            f"{', '.join(unsafe)}: runs code that the model writes; chopjax does not do that. "
            "Leave it out, or score it with `lm_eval --confirm_run_unsafe_code`"
        )
    for task in loaded["tasks"].values():
        shots = shots_of(task.get_config("num_fewshot"), num_fewshot)
        task.set_config(key="num_fewshot", value=shots)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return loaded


def shots_of(usual: int | None, asked: int | None) -> int:
    """Examples in a prompt. usual: what the task says; asked: by --num-fewshot."""
    return (usual or 0) if asked is None or usual == 0 else asked


def find(
    names: Sequence[str], include_path: str | Path | None, data_dir: str | Path | None
) -> tuple[TaskManager, list[str]]:
    """The task index that knows all names, and the names that they stand for."""
    own: list[str | Path] = []
    if include_path is not None:
        folder = expanded(include_path)
        if not folder.is_dir():
            raise UserError(f"--include-path {include_path}: no such folder")
        own = [str(folder)]
    metadata: Any = None if data_dir is None else {"data_dir": str(data_dir)}
    # The smallest index that will do. A pattern may mean any of the harness's tasks.
    small: list[list[str | Path]] = [own] if own else []
    if not any(set(name) & set("*?[") for name in names):
        small.append([*(HARNESS / folder for folder in FOLDERS), SUITES, *own])
    for paths in small:
        manager = TaskManager(include_path=paths, include_defaults=False, metadata=metadata)
        if all(manager.match_tasks([name]) for name in names) and _is_whole(manager, names):
            return manager, _unique(manager, names)
    manager = TaskManager(include_path=[SUITES, *own], metadata=metadata)
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown:
        raise UserError("\n".join(_unknown(name, manager.all_tasks) for name in unknown))
    return manager, _unique(manager, names)


def _is_whole(manager: TaskManager, names: Sequence[str]) -> bool:
    """Whether the index has all that its groups refer to."""
    parts = leaves(manager, _unique(manager, names))
    return all(name in manager.task_index for name in parts)


def _unique(manager: TaskManager, names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(match for name in names for match in manager.match_tasks([name])))


def _unknown(name: str, known: Sequence[str]) -> str:
    near = did_you_mean(name, known, most=5)
    return f"--tasks: {name} is not a task of lm-evaluation-harness nor of --include-path{near}"


# ------------------------------------------------------------------------------ Groups and leaves


def leaves(manager: TaskManager, names: Iterable[str]) -> list[str]:
    """The tasks that groups and tags come down to, in order."""
    return list(dict.fromkeys(name for name, _ in _told(manager, names, {})))


def _told(
    manager: TaskManager, items: Iterable[Any], told: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same, each with what groups say for it, of NEEDS. items: names, or members as a group
    lists them; told: by the groups above, which goes before what a group says itself."""
    for item in items:
        name, says = _member(item), {} if isinstance(item, str) else _needs(item)
        entry = manager.task_index.get(name)
        kind = entry.kind.name if entry else ""
        if entry and kind == "TAG":
            yield from _told(manager, sorted(entry.tags), {**told, **says})
        elif entry and kind == "GROUP":
            about = {**_needs(entry.cfg or {}), **told, **says}
            yield from _told(manager, _members(entry.cfg), about)
        elif not entry and not isinstance(item, str) and "group" in item:  # there and nowhere else
            yield from _told(manager, _members(item), {**says, **told})
        else:
            yield name, {**told, **says}


def _needs(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in local_data.NEEDS if key in config}


def _members(config: Mapping[str, Any] | None) -> list[Any]:
    members = (config or {}).get("task") or []
    return members if isinstance(members, list) else [members]


def _member(item: str | Mapping[str, Any]) -> str:
    return item if isinstance(item, str) else str(item.get("group") or item.get("task"))


def _leave_out(manager: TaskManager, names: list[str], without: Sequence[str]) -> list[str]:
    """The names that are left, and the index's groups without the members named."""
    gone = set(without)
    there = {name: manager.task_index[name] for name in reachable(manager, names)}
    texts = {text["name"] for entry in there.values() if (text := text_of(entry.cfg))}
    if unknown := gone - set(there) - texts:
        raise UserError(
            f"--without {','.join(sorted(unknown))}: not in {', '.join(names)}; in it are "
            f"{', '.join(sorted(set(there) - set(names) | texts))}"
        )
    for name, entry in there.items():
        if entry.kind.name != "GROUP" or entry.yaml_path is None:
            continue
        config = load_yaml(entry.yaml_path)
        members = _members(config)
        config["task"] = [item for item in members if _member(item) not in gone]
        metadata = dict(config.get("metadata") or {})
        if len(config["task"]) < len(members):
            metadata["without"] = sorted(gone & set(map(_member, members)))
        if (text := text_of(config)) and text["name"] in gone:
            del metadata["perplexity"]
        config["metadata"] = metadata
        manager.task_index[name] = dataclasses.replace(entry, yaml_path=None, cfg=config)
    names = [name for name in names if name not in gone and leaves(manager, [name])]
    if not names:
        raise UserError("--without: nothing is left to score")
    return names


def reachable(manager: TaskManager, names: Iterable[str]) -> Iterator[str]:
    """The names and all that is in their groups, at any depth."""
    for name in names:
        entry = manager.task_index.get(name)
        if entry is not None:
            yield name
            inside = sorted(entry.tags) if entry.kind.name == "TAG" else []
            if entry.kind.name == "GROUP":
                inside = list(map(_member, _members(entry.cfg)))
            yield from reachable(manager, inside)


def text_of(config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Of a group, the text whose perplexity belongs to it; see texts.py."""
    return ((config or {}).get("metadata") or {}).get("perplexity")


def absent(
    manager: TaskManager, names: Sequence[str], data_dir: Path, num_fewshot: int | None
) -> dict[Path, str]:
    """What data_dir lacks of what the names come down to: file → where it comes from."""
    files: dict[Path, str] = {}
    for name, told in _told(manager, names, {}):
        config = own_config(manager, name) | told
        shots = shots_of(config.get("num_fewshot"), num_fewshot)
        files |= local_data.missing(config, data_dir, shots)
    for name in reachable(manager, names):
        if text := text_of(manager.task_index[name].cfg):
            path = data_dir / text["local"]
            files |= {} if path.is_file() else {path: f"{path}: text of {text['source']}"}
    return files


def own_config(manager: TaskManager, name: str) -> dict[str, Any]:
    """A task's config; empty where --data-dir is not for it: it reads its documents with code of
    its own, or stands in a group's file alone."""
    entry = manager.task_index.get(name)
    if entry is None or entry.yaml_path is None:
        return {}
    config: dict[str, Any] = load_yaml(entry.yaml_path)
    return {} if "class" in config or "custom_dataset" in config else config


def _read_locally(
    manager: TaskManager, names: list[str], data_dir: Path, num_fewshot: int | None
) -> None:
    """Let every task that the names come down to read its files of data_dir."""
    if not data_dir.is_dir():
        raise UserError(f"--data-dir {data_dir}: no such folder")
    configs = {name: own_config(manager, name) for name in leaves(manager, names)}
    if own := [name for name, config in configs.items() if not config]:
        raise UserError(
            f"task {own[0]} reads its documents with code of its own, or stands in a group's file "
            "alone; --data-dir is not for it"
        )
    if lacking := absent(manager, names, data_dir, num_fewshot):
        raise UserError(
            f"--data-dir {data_dir}: {len(lacking)} files are missing. Each is a split of a "
            "dataset of the hub as JSON lines (datasets.load_dataset(DATASET, CONFIG, split=SPLIT)"
            f".to_json(FILE) writes it):\n{listing(list(lacking.values()))}\n"
            "Tasks of a group can be left out with --without."
        )
    for name, config in configs.items():
        entry = manager.task_index[name]
        reads = {**config, "class": LocalTask}
        manager.task_index[name] = dataclasses.replace(entry, yaml_path=None, cfg=reads)


# ------------------------------------------------------------------------------------ Loading


def _load(manager: TaskManager, name: str) -> Tasks:
    # Whatever the libraries for datasets and networks raise: the harness runs them all in here.
    try:
        tasks: Tasks = manager.load([name])
        return tasks
    except UserError:
        raise
    except Exception as error:
        logging.getLogger(__name__).debug("loading task %s", name, exc_info=True)
        reason = first_line(error)
        if manager.metadata:
            raise UserError(
                f"{name}: its documents in --data-dir are not like those of its dataset"
                f"{_dataset(manager, name)}: {reason[:500]}"
            ) from error
        if isinstance(error, (TypeError, AttributeError, NameError, AssertionError)):
            raise
        raise UserError(
            f"{name}: its dataset{_dataset(manager, name)} cannot be loaded: {reason}\n"
            "Download it once while online (it then stays in the datasets cache), or score from "
            "local files: --data-dir DIR reads DIR/TASK/SPLIT.jsonl and says which files it lacks."
        ) from error


def _check_same(known: Mapping[str, Any], new: Mapping[str, Any], name: str) -> None:
    for task in known.keys() & new.keys():
        if known[task].dump_config() != new[task].dump_config():
            raise UserError(
                f"{name} scores {task} otherwise than what was named before it does; score them "
                "in two runs"
            )


def _dataset(manager: TaskManager, name: str) -> str:
    """The dataset of a task, as its file names it, with a space before it; or nothing."""
    entry = manager.task_index.get(name)
    if entry is None or entry.yaml_path is None:
        return ""
    config = load_yaml(entry.yaml_path, resolve_func=False, recursive=True)
    parts = [str(config[key]) for key in ("dataset_path", "dataset_name") if config.get(key)]
    return f" {' / '.join(parts)}" if parts else ""


def _be_quiet() -> None:
    """The libraries' own bars and notes would drown ours; errors still come through."""
    datasets.disable_progress_bars()
    for name in ("lm_eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
