"""What a pipeline leaves for people and for machines: report.json, the curve, the model card."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chopjax import __version__
from chopjax.checkpoint.atomic import new_file
from chopjax.checkpoint.provenance import read_provenance
from chopjax.report import plots
from chopjax.report.card import card
from chopjax.report.comparison import Column, as_json, gap_closed
from chopjax.train.metrics import read_metrics

MODELS = ("parent", "chopped", "healed")


def columns_of(results: Mapping[str, Any]) -> list[Column]:
    """The comparison's columns from the stages' results."""
    columns = []
    for name in MODELS:
        score = results[f"score-{name}"]
        columns.append(
            Column(
                name=name,
                layers=score["layers"],
                parameters=score["parameters"],
                bytes=score["bytes"],
                loss=score["loss"],
                perplexity=score["perplexity"],
                bits_per_byte=score["bits_per_byte"],
                accuracies={task: tuple(value) for task, value in score["accuracies"].items()},
                latency_seconds=results["latency"]["seconds"][name],
            )
        )
    return columns


def write_report(
    workdir: Path, settings: Mapping[str, Any], results: Mapping[str, Any]
) -> dict[str, Any]:
    """Write WORKDIR/report.json, healing.png and .svg, and healed/README.md; returns the report."""
    columns = columns_of(results)
    rounds = _rounds(results)
    lines = results["held-out-loss"]
    trained, held_out, removals = _curve(rounds)
    figure = plots.healing_curve(
        trained,
        held_out,
        parent_loss=lines["parent"],
        chopped_loss=lines["chopped"],
        removals=removals if len(rounds) > 1 else (),
    )
    plots.save(figure, workdir / "healing.png")
    report = {
        "chopjax_version": __version__,
        "settings": settings,
        "kept_layers": results["chop"]["kept_layers"],
        "models": as_json(columns),
        "gap_closed": gap_closed(columns),
        "held_out_loss_in_training_windows": lines,
        "healing": results["heal"],
        "rounds": rounds,
        "latency": results["latency"],
        "convention": results["score-parent"]["convention"],
        "held_out_tokens": results["score-parent"]["tokens"],
    }
    with new_file(workdir / "report.json", overwrite=True) as path:
        path.write_text(json.dumps(report, indent=1) + "\n")
    _write_card(workdir, settings, results, columns)
    return report


def _rounds(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of every removal of layers: those of the parent left after it, and the healing that
    followed."""
    numbers = itertools.takewhile(lambda n: f"heal-{n}" in results, itertools.count(1))
    return [
        results[f"heal{suffix}"] | {"kept_layers": results[f"chop{suffix}"]["kept_layers"]}
        for suffix in (*(f"-{n}" for n in numbers), "")
    ]


Points = list[tuple[float, float]]


def _curve(rounds: Sequence[Mapping[str, Any]]) -> tuple[Points, Points, list[float]]:
    """Training loss, held-out loss and removals against the tokens of all rounds together."""
    trained: Points = []
    held_out: Points = []
    removals: list[float] = []
    before = 0
    for each in rounds:
        metrics = read_metrics(Path(each["workdir"]))
        tokens_at = {row["step"]: row["tokens"] for row in metrics if "tokens" in row} | {0: 0}
        trained += [(before + row["tokens"], row["loss"]) for row in metrics if "loss" in row]
        held_out += [
            (before + tokens_at[row["step"]], row["eval_loss"])
            for row in metrics
            if "eval_loss" in row
        ]
        removals.append(before)
        before += each["tokens"]
    return trained, held_out, removals


def _write_card(
    workdir: Path,
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    columns: list[Column],
) -> None:
    healed = workdir / "healed"
    provenance = read_provenance(healed)
    assert provenance is not None  # export writes what chop recorded
    rounds, optimizer = _rounds(results), settings["heal"]["optimizer"]
    steps, tokens = (sum(each[name] for each in rounds) for name in ("steps", "tokens"))
    healing = (
        f"{steps:,} steps, {tokens:,} tokens of continued pretraining of all weights; "
        f"{optimizer['name']}, peak learning rate {optimizer['peak_learning_rate']:g}"
    )
    if len(rounds) > 1:
        between = ", ".join(f"{each['steps']:,}" for each in rounds[:-1])
        healing += f"; layers went in {len(rounds)} rounds, {between} steps after each but the last"
    text = card(
        healed,
        provenance,
        columns,
        healing,
        {
            "held_out": f"`{Path(settings['text']['held_out']).name}`",
            "tokens": results["score-healed"]["tokens"],
            "convention": results["score-healed"]["convention"],
            "batch": results["latency"]["batch"],
            "length": results["latency"]["length"],
            "device": results["latency"]["device"],
        },
    )
    with new_file(healed / "README.md", overwrite=True) as path:
        path.write_text(text, encoding="utf-8")
