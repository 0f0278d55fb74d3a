"""What a pipeline leaves for people and for machines: report.html and .json, curve, model card."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chopjax import __version__
from chopjax.checkpoint.atomic import new_file
from chopjax.checkpoint.mark import add_to_mark, listed, marked_by
from chopjax.checkpoint.provenance import read_provenance
from chopjax.chop.configurations import ranges, removed
from chopjax.progress import say
from chopjax.report import html, plots
from chopjax.report.card import card
from chopjax.report.comparison import Column, as_json, gap_closed, verdict
from chopjax.report.comparison import rows as comparison_rows
from chopjax.report.own_files import check_files
from chopjax.train.metrics_file import read_metrics
from chopjax.train.settings import flat

MODELS = ("parent", "chopped", "healed")
FIGURE_FILES = ("healing.png", "healing.svg")
CARD = "README.md"


def check_report(workdir: Path) -> None:
    """Raise UserError where write_report would write over somebody else's files."""
    check_files(workdir, FIGURE_FILES, "models")


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
    workdir: Path, settings: Mapping[str, Any], results: Mapping[str, Any], command: str = ""
) -> dict[str, Any]:
    """Write WORKDIR/report.json and .html, healing.png and .svg, and healed/README.md; returns the
    report.

    command: how to do this again.
    """
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
    plots.save(figure, workdir / "healing")
    report = {
        "chopjax_version": __version__,
        "command": command,
        "settings": settings,
        "figures": list(FIGURE_FILES),
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
    for name, text in {
        "report.json": json.dumps(report, indent=1) + "\n",
        "report.html": page(report, columns, workdir / "healing.svg"),
    }.items():
        with new_file(workdir / name, overwrite=True) as path:
            path.write_text(text)
    _write_card(workdir, settings, results, columns)
    return report


def page(report: Mapping[str, Any], columns: Sequence[Column], curve: Path) -> str:
    """report.html. curve: the healing curve, as SVG."""
    settings, keep = report["settings"], report["kept_layers"]
    parent, _, healed = columns
    header, *body = [["", *(column.name for column in columns)], *comparison_rows(columns)]
    name = Path(str(settings["model"])).name
    parts = [
        html.paragraph(
            f"{settings['model']} with {healed.layers} of its {parent.layers} layers. "
            f"{verdict(columns)} The healed model's loss is {healed.loss:.4f}, the parent's "
            f"{parent.loss:.4f}; a forward pass is "
            f"{parent.latency_seconds / healed.latency_seconds:.2f} times as fast."
        ),
        html.table(header, body),
        html.paragraph(
            f"Losses are over {report['held_out_tokens']:,} tokens of "
            f"{settings['text']['held_out']}: {report['convention']}. ± is one standard error."
        ),
        html.figure(curve, "Loss while healing, in windows of the training length."),
        html.heading("Layers kept"),
        html.table(
            ["round", "layers of the parent that stay", "removed", "steps of healing", "tokens"],
            [
                [
                    str(number),
                    ranges(each["kept_layers"]),
                    ranges(removed(tuple(each["kept_layers"]), parent.layers)),
                    f"{each['steps']:,}",
                    f"{each['tokens']:,}",
                ]
                for number, each in enumerate(report["rounds"], 1)
            ],
        ),
    ]
    if report["command"]:
        parts += [html.heading("How to do this again"), html.code(report["command"])]
    parts += [html.heading("Settings"), html.settings(flat(settings))]
    return html.page(f"{name}, {len(keep)} of {parent.layers} layers", parts)


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
    _place_card(healed, text)


def _place_card(healed: Path, text: str) -> None:
    """README.md, unless it is somebody else's or changed since we wrote it."""
    path = healed / CARD
    if os.path.lexists(path) and not listed(healed, CARD):
        if not path.is_file() or path.read_bytes() != text.encode():
            say(f"{path} is not as this run left it and stays; delete it to have it written again")
        return
    if path.exists() and path.read_bytes() == text.encode():
        return
    with new_file(path, overwrite=True) as temporary:
        temporary.write_text(text)
        if marked_by(healed):
            add_to_mark(healed, CARD, temporary)
