"""What a pipeline leaves for people and for machines: report.html and .json, curve, model card."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chopjax import __version__
from chopjax.checkpoint.assets import CARD
from chopjax.checkpoint.card import is_ours, write_card
from chopjax.checkpoint.provenance import read_provenance
from chopjax.checkpoint.training_record import window_convention
from chopjax.disk.mark import add_to_mark, marked_by
from chopjax.errors import UserError
from chopjax.keep import ranges, removed
from chopjax.progress import say
from chopjax.report import html, plots
from chopjax.report.comparison import Column, as_json, gap_closed, measured, verdict
from chopjax.report.comparison import rows as comparison_rows
from chopjax.report.own_files import check_files, write_report_files
from chopjax.train.metrics_file import read_metrics
from chopjax.train.same_run import flat

MODELS = ("parent", "chopped", "healed")
FIGURE_FILES = ("healing.png", "healing.svg")
PAGE = "report.html"


def check_report(workdir: Path) -> None:
    """Raise UserError where write_report would write over somebody else's files."""
    check_files(workdir, (*FIGURE_FILES, PAGE), "models")


def columns_of(results: Mapping[str, Any]) -> list[Column]:
    """The comparison's columns from the stages' results."""
    columns = []
    window_losses = results["held-out-loss"] | results["held-out-loss-healed"]
    for name in MODELS:
        score, on = results[f"score-{name}"], results[f"tasks-{name}"]
        columns.append(
            Column(
                name=name,
                layers=score["layers"],
                parameters=score["parameters"],
                bytes=score["bytes"],
                document_loss=score["document_loss"],
                window_loss=window_losses[name],
                perplexity=score["perplexity"],
                bits_per_byte=score["bits_per_byte"],
                accuracies={task: tuple(value) for task, value in on["accuracies"].items()},
                texts=on["texts"],
                latency_seconds=results["latency"]["seconds"][name],
            )
        )
    return columns


def write_report(
    workdir: Path,
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    command: str = "",
    costs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write WORKDIR/report.json and .html, healing.png and .svg, and healed/README.md; returns the
    report.

    command: how to do this again. costs: how FLOPs and hours are taken, where healing had a budget.
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
        "healing": results["heal"],
        "rounds": rounds,
        "latency": results["latency"],
        "conventions": _conventions(settings, results) | dict(costs or {}),
        "held_out_tokens": results["score-parent"]["tokens"],
    }
    write_report_files(workdir, report, page(report, columns, workdir / "healing.svg"))
    _write_card(workdir, settings, results, columns)
    return report


def page(report: Mapping[str, Any], columns: Sequence[Column], curve: Path) -> str:
    """report.html. curve: the healing curve, as SVG."""
    settings, keep = report["settings"], report["kept_layers"]
    parent, _, healed = columns
    header, *body = [["", *(column.name for column in columns)], *comparison_rows(columns)]
    name = Path(str(settings["model"])).name
    convention = report["conventions"]["document_loss"]
    parts = [
        html.paragraph(
            f"{settings['model']} with {healed.layers} of its {parent.layers} layers. "
            f"{verdict(columns)} The healed model's document loss is {healed.document_loss:.4f}, "
            f"the parent's {parent.document_loss:.4f}; a forward pass is "
            f"{parent.latency_seconds / healed.latency_seconds:.2f} times as fast."
        ),
        html.table(header, body),
        html.paragraph(
            f"Losses are over {report['held_out_tokens']:,} tokens of "
            f"{settings['text']['held_out']}: {convention}. ± is one standard error."
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
    parts += map(html.paragraph, _repairs(report["rounds"]))
    parts += map(html.paragraph, _budget(report))
    if report["command"]:
        parts += [html.heading("How to do this again"), html.code(report["command"])]
    parts += [html.heading("Settings"), html.settings(flat(settings))]
    return html.page(f"{name}, {len(keep)} of {parent.layers} layers", parts)


def _rounds(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of every removal of layers: those of the parent left after it, and the healing that
    followed."""
    numbers = itertools.takewhile(lambda n: f"heal-{n}" in results, itertools.count(1))
    rounds = []
    for suffix in (*(f"-{n}" for n in numbers), ""):
        chop = results[f"chop{suffix}"]
        of_chop = {key: chop[key] for key in ("kept_layers", "repair") if key in chop}
        rounds.append(results[f"heal{suffix}"] | of_chop)
    return rounds


def _repairs(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each round's repair gained before any healing."""
    sentences = []
    for number, each in enumerate(rounds, 1):
        if about := each.get("repair"):
            loss, where = about["loss"], "other" if about["loss_held_back"] else "the same"
            sentences.append(
                f"Round {number} was repaired without training ({about['kind']}, "
                f"{about['tokens']:,} tokens, {about['seconds']:.0f} s): on {where} sequences of "
                f"the calibration text {loss['chopped']:.4f} nats per token became "
                f"{loss['repaired']:.4f}, the model before it has {loss['parent']:.4f}. "
                "“Chopped” is the repaired model in all tables and figures."
            )
    return sentences


def _budget(report: Mapping[str, Any]) -> list[str]:
    """What healing cost, where it had a budget."""
    if not (cost := report["healing"].get("cost")):
        return []
    each = f"{cost['step_flops']:.3g} FLOPs"
    if cost["step_seconds"]:
        each += f", {cost['step_seconds']:.3g} s as measured before"
    conventions = report["conventions"]
    return [
        f"Of a budget of {report['settings']['budget']}, healing took {cost['flops']:.3g} FLOPs "
        f"and {cost['seconds'] / 3600:.3g} hours: {cost['steps']:,} steps ({each} each)"
        + (", the repair included." if report["rounds"][-1].get("repair") else ".")
        + f" FLOPs: {conventions['FLOPs']}. Hours: {conventions['hours']}."
    ]


Points = list[tuple[float, float]]


def _curve(rounds: Sequence[Mapping[str, Any]]) -> tuple[Points, Points, list[float]]:
    """Training loss, window loss and removals against the tokens of all rounds together."""
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


def _conventions(settings: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, str]:
    """How the two losses on the held-out text are measured."""
    data, most = settings["heal"]["data"], settings["heal"]["evaluation"]["max_batches"]
    window = window_convention(data["sequence_length"], data["mask_documents"])
    return {
        "document_loss": results["score-healed"]["convention"],
        "window_loss": window + (f"; the first {most} batches alone" if most else ""),
    }


def _write_card(
    workdir: Path,
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    columns: list[Column],
) -> None:
    """The card that `export` wrote, with what was measured."""
    healed = workdir / "healed"
    existing = healed / CARD
    if existing.is_file() and not is_ours(existing):
        say(f"{existing} was edited and stays as it is")
        return
    provenance = read_provenance(healed)
    if provenance is None:
        raise UserError(
            f"{healed} has lost its chopjax.json; delete the folder to have it exported again"
        )
    about = {
        "held_out": f"`{Path(settings['text']['held_out']).name}`",
        "tokens": results["score-healed"]["tokens"],
        **_conventions(settings, results),
        **{name: results["latency"][name] for name in ("batch", "length", "device")},
    }
    write_card(healed, provenance, measured(columns, about))
    if marked_by(healed):
        add_to_mark(healed, CARD, healed / CARD)
