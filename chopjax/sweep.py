"""`chopjax sweep`: many ways to remove layers, each scored before and after healing.

    WORKDIR/points.jsonl       one row a point, appended as it finishes
    WORKDIR/analysis-SEED/     the measures that strategies need
    WORKDIR/tokens/            the text to heal on
    WORKDIR/heal/KEY/          the training run of the point at work, removed when it is scored
    WORKDIR/report.html, *.png, *.svg, report.json

The parent stays in memory; an unhealed point slices its layers and reads nothing from disk. Started
again, a sweep does the points that are missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from chopjax.analysis import AnalysisSettings, analyze, needed_measure
from chopjax.checkpoint.atomic import new_file
from chopjax.checkpoint.load import Loaded, load
from chopjax.chop.configurations import Keep, choose, ranges, resolve_remove
from chopjax.chop.importance import MEASURED, choose_measured, parse_protect
from chopjax.chop.surgery import chop_params
from chopjax.data.prepare import prepare
from chopjax.data.tokenizer import load_tokenizer
from chopjax.errors import UserError
from chopjax.progress import progress, say
from chopjax.report.sweep import write_report
from chopjax.score.engine import Engine
from chopjax.score.model import open_engine
from chopjax.score.perplexity import perplexity, read_texts
from chopjax.score.run import evaluate
from chopjax.score.tasks import load_tasks
from chopjax.sweep_settings import SweepSettings, names, read
from chopjax.train import settings as training
from chopjax.train.loop import train
from chopjax.train.workdir import owned

POINTS = "points.jsonl"
PARENT = "parent"


class Point(NamedTuple):
    """One model to score."""

    strategy: str
    remove: int
    keep: Keep
    healed: bool
    seed: int  # of healing, and of the text that chose the layers


def sweep(config: ConfigDict, workdir: Path, command: str = "") -> dict[str, Any]:
    """Do the points that are missing, then draw; returns what report.json holds.

    command: how to do this again, for the report.
    """
    settings = read(config)
    if settings.healed:
        training.read(_heal_config(settings, workdir, (0,), 0))
    with owned(workdir):
        loaded, engine = open_engine(
            settings.model, settings.revision or None, settings.score.dtype
        )
        points = list(plan(settings, workdir, loaded.config.num_layers))
        if settings.healed:
            _prepare(settings, workdir)
        rows = _do(settings, workdir, loaded, engine, points)
        return write_report(workdir, dataclasses.asdict(settings), rows, command)


# ----------------------------------------------------------------------------- Which points


def plan(settings: SweepSettings, workdir: Path, num_layers: int) -> Iterator[Point]:
    """The points in the order in which they are done: the parent, then all that needs no healing,
    then the healed ones, seed by seed; the number of layers coarsely at first.

    Measures layers where a strategy needs it and workdir has no analysis yet.
    """
    yield Point(PARENT, 0, tuple(range(num_layers)), False, 0)
    seeds = [int(seed) for seed in names(settings.seeds)]
    counts = coarse_first([resolve_remove(n, num_layers) for n in names(settings.remove)])
    analyses = {seed: _analysis(settings, workdir, seed) for seed in seeds}
    for healed in (False, True) if settings.healed else (False,):
        for seed in seeds:
            for count in counts:
                for strategy in names(settings.strategies):
                    if strategy not in MEASURED and seed != seeds[0] and not healed:
                        continue  # a name chooses the same layers whatever the text
                    keep = _keep(settings, strategy, analyses[seed], num_layers, count)
                    if keep is not None:
                        yield Point(strategy, count, keep, healed, seed)


def coarse_first(values: Sequence[int]) -> list[int]:
    """The middle value, then the middles of what lies on either side, and so on."""
    ordered = sorted(set(values))
    parts, found = [ordered], []
    while parts:
        part = parts.pop(0)
        if part:
            middle = len(part) // 2
            found.append(part[middle])
            parts += [part[:middle], part[middle + 1 :]]
    return found


def _keep(
    settings: SweepSettings,
    strategy: str,
    analysis: Mapping[str, Any],
    num_layers: int,
    count: int,
) -> Keep | None:
    """None where the strategy cannot remove so many layers."""
    try:
        if strategy in MEASURED:
            return choose_measured(strategy, analysis, count, parse_protect(settings.protect))
        return choose(strategy, num_layers, count)
    except UserError as error:
        say(f"left out: {error}")
        return None


def _analysis(settings: SweepSettings, workdir: Path, seed: int) -> dict[str, Any]:
    """The measures that the strategies need, from workdir where they have been taken before."""
    measures = [needed_measure(s) for s in names(settings.strategies) if s in MEASURED]
    if not measures:
        return {}
    about = AnalysisSettings(
        sequences=settings.calibration.sequences,
        sequence_length=settings.calibration.sequence_length,
        batch_size=settings.calibration.batch_size,
        measures=tuple(dict.fromkeys(measures)),
        protect=parse_protect(settings.protect),
        seed=seed,
    )
    text = names(settings.calibration.text or settings.text.train)
    wanted = json.loads(json.dumps([settings.model, text, dataclasses.asdict(about)]))
    path = workdir / f"analysis-{seed}" / "analysis.json"
    if path.is_file():
        found = json.loads(path.read_text())
        if found.get("asked") == wanted:
            return found
    say(f"measuring layers, seed {seed}")
    found = analyze(settings.model, text, about, settings.revision or None, settings.text.field)
    path.parent.mkdir(exist_ok=True)
    with new_file(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(found | {"asked": wanted}, indent=1) + "\n")
    return found


# ------------------------------------------------------------------------------ Doing them


def _do(
    settings: SweepSettings,
    workdir: Path,
    loaded: Loaded,
    engine: Engine,
    points: Sequence[Point],
) -> list[dict[str, Any]]:
    """The rows of all points, in order; those that are missing are measured and appended."""
    path = workdir / POINTS
    rows = read_rows(path)
    done = {(row["strategy"], row["seed"], row["key"]): row for row in rows}
    measured = {row["key"]: row for row in rows}
    engines: dict[int, Engine] = {}
    found = []
    with progress("points", len(points), "points") as bar:
        for point in points:
            key = _key(settings, loaded, point)
            row = done.get((point.strategy, point.seed, key))
            if row is None:
                # Two strategies may keep the same layers: the model is scored once.
                values = measured.get(key) or _score(
                    settings, workdir, loaded, engine, engines, point
                )
                row = {**values, **_about(point), "key": key}
                _append(path, row)
                measured[key] = row
            found.append(row)
            bar.advance(1, loss=row["loss"])
    return found


def _about(point: Point) -> dict[str, Any]:
    return {
        "strategy": point.strategy,
        "remove": point.remove,
        "keep": ranges(point.keep),
        "healed": point.healed,
        "seed": point.seed,
    }


def _key(settings: SweepSettings, loaded: Loaded, point: Point) -> str:
    """Of all that a point's figures depend on."""
    healing: Any = None
    if point.healed:
        about = dataclasses.asdict(settings.heal)
        flat = training.flat(about)
        healing = {k: v for k, v in flat.items() if not k.startswith(training.MAY_CHANGE)}
        healing |= {"seed": point.seed, "text": settings.text.train}
    score = {k: v for k, v in dataclasses.asdict(settings.score).items() if "latency" not in k}
    content = [
        loaded.name,
        loaded.revision,
        list(point.keep),
        healing,
        score,
        settings.text.held_out,
        settings.text.field,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _score(
    settings: SweepSettings,
    workdir: Path,
    loaded: Loaded,
    engine: Engine,
    engines: dict[int, Engine],
    point: Point,
) -> dict[str, Any]:
    begun = time.monotonic()
    say(
        f"{point.strategy}: layers {ranges(point.keep)}"
        + (f", healed, seed {point.seed}" if point.healed else "")
    )
    folder = workdir / "heal" / _key(settings, loaded, point)
    if point.healed:
        train(_heal_config(settings, workdir, point.keep, point.seed), folder)
        model = load(str(folder), dtype=settings.score.dtype)
        params = model.params
    else:
        params = chop_params(loaded.params, point.keep)
    config = loaded.config.with_layers(len(point.keep))
    model = dataclasses.replace(loaded, params=params, config=config)
    # Models of one depth run the same programs.
    base = engines.get(len(point.keep))
    scorer = (
        base.with_params(params)
        if base
        else Engine(config, params, engine.compute, engine.max_length, engine.mesh)
    )
    engines.setdefault(len(point.keep), scorer)
    texts = read_texts(names(settings.text.held_out), settings.text.field)
    found = perplexity(scorer, load_tokenizer(loaded.folder), texts)
    row = {
        "loss": found["nats_per_token"],
        "perplexity": found["perplexity"],
        "bits_per_byte": found["bits_per_byte"],
        "loss_over_log_vocabulary": found["loss_over_log_vocabulary"],
        "tokens": found["tokens"],
        "convention": found["convention"],
        **_accuracies(settings, model, scorer),
        "seconds": time.monotonic() - begun,
    }
    if point.healed and not settings.keep_healed:
        shutil.rmtree(folder)
    return row


def _accuracies(settings: SweepSettings, model: Loaded, engine: Engine) -> dict[str, Any]:
    """Accuracy of every task and what guessing would give."""
    score = settings.score
    if not score.tasks:
        return {"accuracy": {}, "chance": {}}
    shots = None if score.num_fewshot < 0 else score.num_fewshot
    tasks = load_tasks(names(score.tasks), score.include_path or None, shots)
    found = evaluate(model, engine, tasks, limit=score.limit or None)
    accuracy = {}
    for task, metrics in found["results"].items():
        metric = next((m for m in ("acc_norm,none", "acc,none") if m in metrics), None)
        if metric:
            error = metrics.get(metric.replace(",", "_stderr,"))
            accuracy[task] = [metrics[metric], error if isinstance(error, float) else None]
    return {
        "accuracy": accuracy,
        "chance": {task: found["chance"].get(task) for task in accuracy},
    }


# --------------------------------------------------------------------------------- Healing


def _prepare(settings: SweepSettings, workdir: Path) -> None:
    prepare(
        names(settings.text.train),
        load_tokenizer(settings.model, settings.revision or None),
        workdir / "tokens",
        field=settings.text.field,
        workers=settings.text.workers,
    )


def _heal_config(settings: SweepSettings, workdir: Path, keep: Keep, seed: int) -> ConfigDict:
    heal = dataclasses.replace(
        settings.heal,
        model=settings.model,
        revision=settings.revision,
        seed=seed,
        chop=training.ChopSettings(keep=",".join(map(str, keep))),
        data=dataclasses.replace(settings.heal.data, train=str(workdir / "tokens")),
        log=dataclasses.replace(settings.heal.log, tensorboard=False),
    )
    return ConfigDict(dataclasses.asdict(heal), convert_dict=True)


# ------------------------------------------------------------------------------- points.jsonl


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The points done so far. What a killed run left of a line is dropped."""
    if not path.exists():
        return []
    text = path.read_text()
    whole, _, rest = text.rpartition("\n")
    if rest:
        with new_file(path, overwrite=True) as temporary:
            temporary.write_text(whole + "\n" if whole else "")
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise UserError(
            f"{path}: damaged ({error}). Delete the line, or the file to measure all points again."
        ) from error


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
