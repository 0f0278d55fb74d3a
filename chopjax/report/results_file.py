"""Results of lm-evaluation-harness and of `chopjax score`, as they lie on disk."""

from __future__ import annotations

import dataclasses
import glob
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chopjax.disk.files import expanded, read_json_object
from chopjax.errors import UserError, listing
from chopjax.report.results_check import problems
from chopjax.score.suite_tasks import f1_parts

# Of the metrics of a task, the one to show, unless the user names another.
PREFERRED = ("mean", "acc_norm", "acc_pmi_dc", "acc", "exact_match", "f1", "nats_per_token")
Statistic = Callable[[np.ndarray], np.ndarray]  # sums over documents [..., C] → metric [...]


@dataclasses.dataclass(frozen=True)
class Results:
    """One results file, with the samples files of the same run beside it."""

    path: Path
    model: str
    content: dict[str, Any]
    samples: dict[str, Path]  # task → file

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        results: dict[str, dict[str, Any]] = self.content["results"]
        return results

    def metrics(self, task: str) -> dict[str, float]:
        """ "metric,filter" → value."""
        return {
            key: float(value)
            for key, value in self.results.get(task, {}).items()
            if "," in key and "_stderr," not in key and not isinstance(value, str | None)
        }

    def stderr(self, task: str, key: str) -> float | None:
        metric, _, kind = key.partition(",")
        value = self.results[task].get(f"{metric}_stderr,{kind}")
        return None if isinstance(value, str | None) else float(value)

    def higher_is_better(self, task: str, key: str) -> bool:
        metric = key.partition(",")[0]
        said = (self.content.get("higher_is_better") or {}).get(task) or {}
        return bool(said.get(metric, True))

    def leaves(self, group: str) -> list[str]:
        """The tasks that a group comes down to; a task is its own."""
        children = (self.content.get("group_subtasks") or {}).get(group)
        if not children or group in children:  # some tasks are the only one of their group
            return [group]
        return [leaf for child in children for leaf in self.leaves(child)]


@dataclasses.dataclass(frozen=True)
class Items:
    """What a model made of each document of a task, D documents."""

    hashes: dict[int, tuple[str, str, str]]  # document → hash of itself, its prompt, its target
    columns_DC: np.ndarray  # what the metric sums over documents, in the order of `hashes`
    statistic: Statistic


def read_results(place: str) -> Results:
    """A results file, or the newest one under a folder. Raises UserError where there is none."""
    path = expanded(place)
    if path.is_dir():
        files = (file for file in path.rglob("results_*.json") if file.is_file())
        by_name = sorted(files, key=lambda p: (p.name, str(p)))
        if not by_name:
            raise UserError(
                f"{path}: no results_*.json in this folder, which is what score writes, and no "
                "report.json of a sweep"
            )
        path = by_name[-1]
    elif not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    content = read_json_object(path)
    if wrong := problems(content):
        raise UserError(
            f"{path}: not in the format that `chopjax score` and lm_eval write:\n"
            f"{listing(wrong, 8)}"
        )
    date = path.stem.rpartition("_")[2]
    samples = {}
    for file in sorted(path.parent.glob(f"samples_*_{glob.escape(date)}.jsonl")):
        samples[file.name.removeprefix("samples_").removesuffix(f"_{date}.jsonl")] = file
    return Results(path, _model(content, path), content, samples)


def _model(content: Mapping[str, Any], path: Path) -> str:
    arguments = (content.get("config") or {}).get("model_args")
    arguments = arguments if isinstance(arguments, dict) else {}
    named = content.get("model_name") or arguments.get("pretrained") or path.parent.name
    weights = arguments.get("weights")  # what --weights said
    return f"{named} ({weights})" if weights else str(named)


def choose_metric(keys: Sequence[str], wanted: str | None) -> str | None:
    """Of "metric,filter" keys the one to show; None where the wanted one is not there."""
    if wanted is not None:
        return next((key for key in keys if wanted in (key, key.partition(",")[0])), None)
    for metric in PREFERRED:
        for key in keys:
            if key.partition(",")[0] == metric:
                return key
    return next(iter(keys), None)


def read_items(path: Path, key: str) -> Items | None:
    """The documents of a samples file; None where the metric does not come from sums over them.

    key: "metric,filter". Raises UserError for a file that is not one.
    """
    metric, _, kind = key.partition(",")
    hashes: dict[int, tuple[str, str, str]] = {}
    values: list[Any] = []
    if not path.is_file():
        raise UserError(f"{path}: not a file")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                sample = json.loads(line)
                if sample.get("filter", kind) != kind:
                    continue
                names = ("doc_hash", "prompt_hash", "target_hash")
                hashes[int(sample["doc_id"])] = tuple(str(sample[name]) for name in names)  # type: ignore[assignment]
                values.append(sample.get(metric))
            except (
                *(ValueError, KeyError, TypeError, AttributeError),
                *(OverflowError, RecursionError),
            ) as error:
                raise UserError(f"{path}, line {number}: not a sample ({error!r})") from None
    if len(hashes) != len(values):
        raise UserError(f"{path}: a document comes twice")
    try:
        summed = _sums(metric, values)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{path}: {metric} is not a number everywhere ({error})") from None
    return None if summed is None else Items(hashes, *summed)


def _sums(metric: str, values: list[Any]) -> tuple[np.ndarray, Statistic] | None:
    """What to sum over documents, and the metric as a function of the sums."""
    count = len(values)
    pairs = bool(values) and all(isinstance(v, list) and len(v) == 2 for v in values)
    if metric == "f1" and pairs:
        columns_DC = np.stack(f1_parts(values), axis=-1)
        return columns_DC, lambda s: s[..., 0] / np.maximum(s.sum(axis=-1), 1e-9)
    if pairs and metric in RATIOS:
        turn = RATIOS[metric]
        return np.array(values, np.float64), lambda s: turn(-s[..., 0] / s[..., 1])
    if values and all(isinstance(value, (bool, int, float)) for value in values):
        columns_DC = np.array(values, np.float64)[:, None]
        if metric == "perplexity":  # of lambada: of the last words
            return columns_DC, lambda s: np.exp(-s[..., 0] / count)
        return columns_DC, lambda s: s[..., 0] / count
    return None


# Metrics of (log-likelihood, size) pairs, from nats per unit of size.
RATIOS: dict[str, Callable[[Any], Any]] = {
    "nats_per_token": lambda nats: nats,
    "bits_per_byte": lambda nats: nats / math.log(2),
    "byte_perplexity": np.exp,
    "word_perplexity": np.exp,
}
