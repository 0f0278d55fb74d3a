"""Results in the harness's format: assembled, written to disk, shown as a table."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import jax
from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker
from lm_eval.loggers.utils import add_tokenizer_info
from lm_eval.utils import (
    handle_non_serializable,
    hash_string,
    sanitize_list,
)
from rich.table import Table

from chopjax.disk.atomic import new_file
from chopjax.models.quantized import kind_of
from chopjax.score.harness import ChopjaxLM
from chopjax.score.perplexity import ratio_stderr
from chopjax.score.suite_tasks import f1_parts
from chopjax.terminal import to_json


def complete(
    results: dict[str, Any],
    lm: ChopjaxLM,
    settings: Mapping[str, Any],
    prompts: tuple[str | None, str | None, bool],
    tracker: Any,
) -> None:
    """Add to the harness's evaluate() what its simple_evaluate() adds around it.

    settings: for `config`. prompts: the system's words, the chat template's text, and whether
    examples are turns. tracker: a GeneralConfigTracker, started when the run began.
    """
    name = lm.loaded.name
    arguments = {"pretrained": name, "dtype": lm.engine.compute.dtype}
    if kind := kind_of(lm.engine.params):
        arguments["weights"] = kind
    results["config"] = {
        "model": "chopjax",
        "model_args": arguments,
        **lm.get_model_info(),
        **settings,
    }
    results["git_hash"] = _git_commit()
    results["date"] = time.time()
    devices = jax.devices()
    results["pretty_env_info"] = (
        f"chopjax {importlib.metadata.version('chopjax')}, jax {jax.__version__}, "
        f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}), "
        f"Python {platform.python_version()}, {platform.platform()}"
    )
    for package in ("transformers", "lm_eval"):
        results[f"{package}_version"] = importlib.metadata.version(package)
    results["upper_git_hash"] = None
    add_tokenizer_info(results, lm)
    tracker.log_experiment_args("chopjax", arguments, *prompts)
    tracker.log_end_time()
    results.update(dataclasses.asdict(tracker))
    hashes = {
        task: hash_string(
            "".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples)
        )
        for task, samples in results["samples"].items()
    }
    results["task_hashes"] = hashes
    results["chance"] = {task: chance(samples) for task, samples in results["samples"].items()}


def _git_commit() -> str | None:
    """The working folder's, as the harness has it, without git's complaint where there is none."""
    try:
        command = ["git", "describe", "--always"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def start_tracker() -> Any:
    """The harness's record of a run; its clock starts now."""
    return GeneralConfigTracker()


def chance(samples: list[dict[str, Any]]) -> float | None:
    """Accuracy of guessing among the choices; None where a task has none."""
    shares = []
    for sample in samples:
        counted = len(sample["arguments"])
        if {"acc_mutual_info", "acc_pmi_dc"} & set(sample["metrics"]):
            counted //= 2  # each choice is scored with and without the question
        if counted < 2 or not any(map(is_accuracy, sample["metrics"])):
            return None
        shares.append(1 / counted)
    return statistics.fmean(shares) if shares else None


def is_accuracy(metric: str) -> bool:
    return metric.startswith("acc")


def add_f1_errors(results: dict[str, Any]) -> None:
    """The standard error of an f1 for which the harness has none: that of a ratio of sums."""
    for task, metrics in results["results"].items():
        if "f1,none" in metrics and metrics.get("f1_stderr,none") == "N/A":
            agreed_D, wrong_D = f1_parts([sample["f1"] for sample in results["samples"][task]])
            if (agreed_D + wrong_D).any():
                error = ratio_stderr(agreed_D, agreed_D + wrong_D)
                metrics["f1_stderr,none"] = "N/A" if error is None else error


def add_means(results: dict[str, Any], groups: Mapping[str, Any]) -> None:
    """To each group whose metadata ask for it, the mean of its tasks' one metric, every task of the
    same weight: what papers print as the average. `mean_of` says of what."""
    for name, group in groups.items():
        about = group.metadata or {}
        if not about.get("mean"):
            continue
        tasks = group.child_names
        parts = [_only_metric(results["results"][task], task) for task in tasks]
        errors = [error for _, _, error in parts]
        known = all(isinstance(error, float) for error in errors)
        level = [results["chance"].get(task) for task in tasks]
        figures = {
            "mean,none": statistics.fmean(value for _, value, _ in parts),
            "mean_stderr,none": math.hypot(*errors) / len(errors) if known else "N/A",
            "mean_of": dict(
                zip(group.child_names, (metric for metric, _, _ in parts), strict=True)
            ),
            "without": about.get("without", []),
        }
        results["results"][name] |= figures
        results.setdefault("groups", {})[name] = results["results"][name]
        guessed = [share for share in level if share is not None]
        if len(guessed) == len(level):
            results["chance"][name] = statistics.fmean(guessed)


def _only_metric(metrics: Mapping[str, Any], task: str) -> tuple[str, float, Any]:
    """(metric, value, standard error) of a task with a single metric."""
    keys = [key for key in metrics if "," in key and "_stderr," not in key]
    if len(keys) != 1:
        raise ValueError(f"{task} has {len(keys)} metrics; the mean of a group needs one each")
    metric, _, kind = keys[0].partition(",")
    return metric, metrics[keys[0]], metrics.get(f"{metric}_stderr,{kind}")


def write_results(results: dict[str, Any], folder: Path, log_samples: bool) -> list[Path]:
    """results_DATE.json, and samples_TASK_DATE.jsonl for each task: names and content as the
    harness's EvaluationTracker writes them. The results come last: where they are, all is."""
    date = datetime.now().isoformat().replace(":", "-")
    written = []
    for task, samples in results["samples"].items() if log_samples else ():
        written.append(folder / f"samples_{task}_{date}.jsonl")
        with new_file(written[-1]) as path, _open(path) as file:
            for sample in samples:
                file.write(_dump(_plain_sample(sample)) + "\n")
    rest = {key: value for key, value in results.items() if key != "samples"}
    written.append(folder / f"results_{date}.json")
    with new_file(written[-1]) as path, _open(path) as file:
        file.write(_dump(rest, indent=2))
    return written


def _open(path: Path) -> TextIO:
    """Half of a surrogate pair, as a document may hold, is written as JSON's own escape."""
    return path.open("w", encoding="utf-8", errors="backslashreplace")


def _plain_sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {
        f"gen_args_{i}": {f"arg_{j}": part for j, part in enumerate(parts)}
        for i, parts in enumerate(sample["arguments"])
    }
    return {
        **sample,
        "resps": sanitize_list(sample["resps"]),
        "filtered_resps": sanitize_list(sample["filtered_resps"]),
        "arguments": arguments,
        "target": str(sample["target"]),
    }


def _dump(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, default=handle_non_serializable, ensure_ascii=False)


def as_json(results: Mapping[str, Any]) -> str:
    """What `--json` prints: everything but the samples and the task files' content."""
    left_out = ("samples", "configs")
    return to_json(
        json.loads(_dump({key: value for key, value in results.items() if key not in left_out}))
    )


def table(results: Mapping[str, Any]) -> Table:
    """Tasks and groups with standard errors and, for multiple choice, the accuracy of guessing."""
    shown = Table(box=None, header_style="bold")
    for title in ("task", "shots", "documents", "metric"):
        shown.add_column(title, no_wrap=True)
    for title in ("value", "± stderr", "chance"):
        shown.add_column(title, justify="right")
    everything = {**results["results"], **results.get("groups", {})}
    for task, metrics in everything.items():
        first = [
            metrics.get("alias", task).strip(" -"),
            str(results["n-shot"].get(task, "")),
            str(results["n-samples"].get(task, {}).get("effective", "")),
        ]
        for name, value in metrics.items():
            metric, _, kind = name.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = metrics.get(f"{metric}_stderr,{kind}")
            level = results["chance"].get(task) if is_accuracy(metric) or metric == "mean" else None
            shown.add_row(
                *first,
                _shown_name(metric, kind, metrics),
                _number(value),
                _number(error),
                _number(level),
            )
            first = [""] * len(first)
    return shown


def _shown_name(metric: str, kind: str, metrics: Mapping[str, Any]) -> str:
    if metric == "mean":
        without = f" (without {', '.join(metrics['without'])})" if metrics["without"] else ""
        return f"mean of {len(metrics['mean_of'])}{without}"
    return metric if kind == "none" else f"{metric} ({kind})"


def _number(value: Any) -> str:
    if not isinstance(value, (int, float)):
        return ""
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.5g}"
