"""What a pipeline leaves for people and for machines: report.json, the curve, the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
    metrics = read_metrics(workdir / "heal")
    tokens_at = {row["step"]: row["tokens"] for row in metrics if "tokens" in row} | {0: 0}
    lines = results["held-out-loss"]
    figure = plots.healing_curve(
        [(row["tokens"], row["loss"]) for row in metrics if "loss" in row],
        [(tokens_at[row["step"]], row["eval_loss"]) for row in metrics if "eval_loss" in row],
        parent_loss=lines["parent"],
        chopped_loss=lines["chopped"],
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
        "latency": results["latency"],
        "convention": results["score-parent"]["convention"],
        "held_out_tokens": results["score-parent"]["tokens"],
    }
    with new_file(workdir / "report.json", overwrite=True) as path:
        path.write_text(json.dumps(report, indent=1) + "\n")
    _write_card(workdir, settings, results, columns)
    return report


def _write_card(
    workdir: Path,
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    columns: list[Column],
) -> None:
    healed = workdir / "healed"
    provenance = read_provenance(healed)
    assert provenance is not None  # export writes what chop recorded
    heal, optimizer = results["heal"], settings["heal"]["optimizer"]
    healing = (
        f"{heal['steps']:,} steps, {heal['tokens']:,} tokens of continued pretraining of all "
        f"weights; {optimizer['name']}, peak learning rate {optimizer['peak_learning_rate']:g}"
    )
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
        path.write_text(text)
