"""Results in the harness's format: assembled, written to disk, shown as a table."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker
from lm_eval.loggers.utils import add_tokenizer_info, get_git_commit_hash
from lm_eval.utils import (
    handle_non_serializable,
    hash_string,
    sanitize_list,
    sanitize_model_name,
)
from rich.table import Table

from chopjax.checkpoint.atomic import new_file
from chopjax.score.harness import ChopjaxLM


def model_folder(output: Path, model: str) -> Path:
    """Where the harness puts the results of a model: DIR/its name."""
    return output / sanitize_model_name(model)


def complete(
    results: dict[str, Any], lm: ChopjaxLM, settings: Mapping[str, Any], tracker: Any
) -> None:
    """Add to the harness's evaluate() what its simple_evaluate() adds around it.

    settings: for `config`. tracker: a GeneralConfigTracker, started when the run began.
    """
    name = lm.loaded.name
    arguments = {"pretrained": name, "dtype": lm.engine.compute.dtype}
    results["config"] = {
        "model": "chopjax",
        "model_args": arguments,
        **lm.get_model_info(),
        **settings,
    }
    results["git_hash"] = get_git_commit_hash()
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
    tracker.log_experiment_args("chopjax", arguments, None, None, False)
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


def start_tracker() -> Any:
    """The harness's record of a run; its clock starts now."""
    return GeneralConfigTracker()


def chance(samples: list[dict[str, Any]]) -> float | None:
    """Accuracy of guessing among the choices; None where a task has none."""
    shares = []
    for sample in samples:
        counted = len(sample["arguments"])
        if "acc_mutual_info" in sample["metrics"]:
            counted //= 2  # each choice is scored with and without the question
        if counted < 2 or "acc" not in sample["metrics"]:
            return None
        shares.append(1 / counted)
    return statistics.fmean(shares) if shares else None


def write_results(results: dict[str, Any], folder: Path, log_samples: bool) -> list[Path]:
    """results_DATE.json, and samples_TASK_DATE.jsonl for each task: names and content as the
    harness's EvaluationTracker writes them. The results come last: where they are, all is."""
    date = datetime.now().isoformat().replace(":", "-")
    written = []
    for task, samples in results["samples"].items() if log_samples else ():
        written.append(folder / f"samples_{task}_{date}.jsonl")
        with new_file(written[-1]) as path, path.open("w", encoding="utf-8") as file:
            for sample in samples:
                file.write(_dump(_plain_sample(sample)) + "\n")
    rest = {key: value for key, value in results.items() if key != "samples"}
    written.append(folder / f"results_{date}.json")
    with new_file(written[-1]) as path:
        path.write_text(_dump(rest, indent=2), encoding="utf-8")
    return written


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
    return _dump({key: value for key, value in results.items() if key not in left_out})


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
            level = results["chance"].get(task) if metric.startswith("acc") else None
            shown.add_row(
                *first,
                metric if kind == "none" else f"{metric} ({kind})",
                _number(value),
                _number(error),
                _number(level),
            )
            first = [""] * len(first)
    return shown


def _number(value: Any) -> str:
    if not isinstance(value, (int, float)):
        return ""
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.5g}"
