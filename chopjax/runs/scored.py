"""What `run` and `sweep` score models on: tasks and texts, found before any work."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from chopjax.checkpoint.load import Loaded
from chopjax.data.lists import text_names
from chopjax.disk.files import expanded
from chopjax.runs.inputs import Contents
from chopjax.runs.settings import ScoreSettings, split_list
from chopjax.score.engine import Engine
from chopjax.score.run import evaluate
from chopjax.score.tasks import Tasks, load_tasks
from chopjax.score.texts import Text, find_texts

# Shares of documents that are right, the one to show first. Of several ways to read an answer out
# of a text the task's first is taken.
ACCURACIES = ("acc_norm", "acc", "exact_match")
BOS = {"auto": None, "yes": True, "no": False}  # score.bos → add_bos_token of `evaluate`


@dataclasses.dataclass(frozen=True)
class Scored:
    """Tasks with their documents, and texts whose perplexity is measured.

    identities: "task NAME" and "text NAME" → what its figures depend on apart from the model.
    """

    tasks: Tasks
    texts: tuple[Text, ...]
    identities: dict[str, Any]

    def __bool__(self) -> bool:
        return bool(self.identities)


def find(settings: ScoreSettings) -> Scored:
    """Load tasks and open texts. Raises UserError where one is unknown or its data are missing."""
    wanted = [*split_list(settings.suite), *split_list(settings.tasks)]
    tasks: Tasks = {"tasks": {}, "groups": {}}
    data_dir = str(expanded(settings.data_dir)) if settings.data_dir else None
    if wanted:
        tasks = load_tasks(
            wanted,
            settings.include_path or None,
            None if settings.num_fewshot < 0 else settings.num_fewshot,
            data_dir,
            split_list(settings.without),
        )
    texts = find_texts(tasks, text_names(settings.text), data_dir)
    identities: dict[str, Any] = {f"task {n}": _of_task(t) for n, t in tasks["tasks"].items()}
    identities |= {f"group {n}": list(g.child_names) for n, g in tasks["groups"].items()}
    identities |= {f"text {text.name}": _of_text(text) for text in texts}
    return Scored(tasks, tuple(texts), identities)


def _of_task(task: Any) -> str:
    """A hash of a task's settings and documents; of where they lie only their content counts."""
    config = task.dump_config()
    metadata = dict(config.get("metadata") or {})
    metadata.pop("data_dir", None)
    digest = hashlib.sha256(_plain(config | {"metadata": metadata}))
    examples = task.fewshot_docs() if config.get("num_fewshot") else None
    for documents in (task.eval_docs, examples or ()):
        for document in documents:
            digest.update(_plain(document))
    return digest.hexdigest()[:16]


def _plain(value: Any) -> bytes:
    """JSON of anything, functions by their names and without their places in memory."""
    text = json.dumps(value, sort_keys=True, default=str)
    return re.sub(r" at 0x[0-9a-f]+", "", text).encode()


def _of_text(text: Text) -> list[Any]:
    return [text.tokens, text.context_length, *Contents().files(text.sources)]


def about(settings: ScoreSettings) -> dict[str, Any]:
    """The settings that all figures of tasks and texts depend on."""
    shared = ("num_fewshot", "dtype", "max_length", "bos")
    return {"limit": limit(settings)} | {name: getattr(settings, name) for name in shared}


def limit(settings: ScoreSettings) -> int | float:
    """Documents of each task: a number, or a share below 1; 0 for all."""
    return settings.limit if settings.limit < 1 and settings.limit else int(settings.limit)


def measure(
    settings: ScoreSettings, scored: Scored, model: Loaded, engine: Engine, **journal: Any
) -> dict[str, Any]:
    """What `chopjax score` finds. journal: of `evaluate`, where results and answers are kept."""
    return evaluate(
        model,
        engine,
        scored.tasks,
        limit=limit(settings) or None,
        add_bos_token=BOS[settings.bos],
        texts=scored.texts,
        **journal,
    )


def headlines(results: Mapping[str, Any], texts: tuple[Text, ...]) -> dict[str, Any]:
    """Of score's results, {"accuracy": task → [value, standard error or None], "chance": task →
    what guessing would give, "texts": as below}."""
    accuracy, chance = {}, {}
    for task, metrics in results["results"].items():
        metric = next((m for m in ACCURACIES if any(k.startswith(f"{m},") for k in metrics)), None)
        if metric:
            key = next(key for key in metrics if key.startswith(f"{metric},"))
            accuracy[task] = [metrics[key], _error(metrics, *key.split(","))]
            # Nobody guesses a text.
            chance[task] = 0.0 if metric == "exact_match" else results["chance"].get(task)
    return {
        "accuracy": accuracy,
        "chance": chance,
        "texts": measured_on(results, texts)["texts"],
    }


def measured_on(results: Mapping[str, Any], texts: tuple[Text, ...]) -> dict[str, Any]:
    """Of score's results, {"accuracies": "task metric" → (value, standard error or None),
    "texts": name → figures with their convention}. How an answer is read out of a text stands
    behind its metric: "gsm8k exact_match (strict-match)"."""
    figures: dict[str, Any] = {"accuracies": {}, "texts": {}}
    of_texts = {text.name for text in texts}
    for task, metrics in results["results"].items():
        if task in of_texts:
            figures["texts"][task] = _figures(results, task)
            continue
        for name, value in metrics.items():
            metric, _, filtered = name.partition(",")
            if not filtered or metric.endswith("_stderr") or not isinstance(value, float):
                continue
            how = "" if filtered == "none" else f" ({filtered})"
            figures["accuracies"][f"{task} {metric}{how}"] = (
                value,
                _error(metrics, metric, filtered),
            )
    return figures


def _error(metrics: Mapping[str, Any], metric: str, filtered: str) -> float | None:
    error = metrics.get(f"{metric}_stderr,{filtered}")
    return error if isinstance(error, float) else None


def _figures(results: Mapping[str, Any], text: str) -> dict[str, Any]:
    metrics = results["results"][text]
    values = {
        name.partition(",")[0]: value
        for name, value in metrics.items()
        if name.endswith(",none") and isinstance(value, float)
    }
    about = results["configs"][text]["metadata"]
    return values | {"tokens": about["tokens"], "convention": about["convention"]}
