"""`chopjax sweep`: many ways to remove layers, each scored before and after healing.

    WORKDIR/points.jsonl       one row a point, appended as it finishes
    WORKDIR/analysis-SEED/     the measures that strategies need
    WORKDIR/tokens/            the text to heal on
    WORKDIR/heal/KEY/          the training run of the point at work, removed when it is scored
    WORKDIR/repaired/KEY/      its repaired model, where it is repaired, likewise
    WORKDIR/report.html, *.png, *.svg, report.json

The parent stays in memory; an unhealed point slices its layers and reads nothing from disk. Started
again, a sweep does the points that are missing.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from chopjax.checkpoint.describe import describe
from chopjax.checkpoint.load import Loaded, load
from chopjax.chop.analysis import needed_measure
from chopjax.chop.configurations import resolve_remove
from chopjax.chop.importance import ANALYSIS, MEASURED
from chopjax.chop.surgery import chop_params
from chopjax.disk.mark import is_taken, marked_by, some
from chopjax.errors import UserError
from chopjax.keep import Keep, ranges
from chopjax.models.config import ModelConfig
from chopjax.progress import progress, say
from chopjax.report.sweep import check_report, write_report
from chopjax.runs import healing, repairs, work
from chopjax.runs import scored as scores
from chopjax.runs.inputs import WAYS, Inputs, digest
from chopjax.runs.points import Point, plan
from chopjax.runs.records import AnalysisRecords, PointRecords, read_rows, stage_name
from chopjax.runs.settings import (
    SweepSettings,
    calibration_text,
    parent_of,
    read_sweep,
    split_list,
)
from chopjax.runs.stages import Stage, finish, look
from chopjax.runs.workdir import check_space, opened
from chopjax.score.engine import Engine
from chopjax.train import settings as training
from chopjax.train.loop import train
from chopjax.train.space import run_bytes
from chopjax.train.wandb_run import check_wandb

POINTS = "points.jsonl"
OWN = ("tokens", "tokens.partial", "heal", repairs.FOLDER, POINTS)
VERB = "sweep"


class Job(NamedTuple):
    """What all points share. parent: in memory; engines: by configuration, the parent's among them;
    models of one configuration run the same programs."""

    settings: SweepSettings
    workdir: Path
    parent: Loaded
    engines: dict[ModelConfig, Engine]
    scored: scores.Scored


def sweep(config: ConfigDict, workdir: Path, command: str = "") -> dict[str, Any]:
    """Do the points that are missing, then draw; returns what report.json holds.

    command: how to do this again, for the report.
    """
    settings = read_sweep(config)
    if settings.healed:
        training.read(_heal_config(settings, workdir, (0,), 0))
        check_wandb(settings.heal.log.wandb)
    scored = scores.find(settings.score)
    with opened(workdir, VERB, _check_places):
        parent, engine = work.opened(settings.score, parent_of(settings))
        num_layers = parent.config.num_layers
        if settings.repair:
            repairs.check(settings, parent)
        if settings.healed:
            healing.check_teacher_of(settings, parent)
            _check_space(settings, workdir, parent.config)
        seeds = [int(seed) for seed in split_list(settings.seeds)]
        analyses = {seed: _analysis(settings, workdir, seed) for seed in seeds}
        points = list(plan(settings, num_layers, analyses))
        if settings.healed:
            work.prepare_text(settings, settings.text.train, workdir / "tokens")
        rows = _rows(Job(settings, workdir, parent, {parent.config: engine}, scored), points)
        return write_report(workdir, dataclasses.asdict(settings), rows, command)


def _check_places(workdir: Path) -> None:
    check_report(workdir)
    if marked_by(workdir) == VERB or read_rows(workdir / POINTS):
        return
    places = [workdir / name for name in OWN]
    taken = [path.name for path in (*places, *workdir.glob("analysis-*")) if is_taken(path)]
    if taken:
        raise UserError(
            f"{workdir} holds {some(taken)}, and no sweep is known to have written it; move it "
            "away or give another --workdir"
        )


def _check_space(settings: SweepSettings, workdir: Path, model: ModelConfig) -> None:
    """Of the healed points, one for every number of layers, strategy, seed and start, one is on the
    disk at a time, or all with `keep_healed`."""
    counts = [resolve_remove(n, model.num_layers) for n in split_list(settings.remove)]
    kept = [model.keep(range(model.num_layers - count)) for count in counts]
    sizes = [run_bytes(config, settings.heal) for config in kept]
    times = len(split_list(settings.strategies)) * len(split_list(settings.seeds))
    times *= 2 if settings.repair else 1
    total = times * sum(sizes) if settings.keep_healed else max(sizes)
    check_space(workdir, [settings.text.train], settings.text.field, total)


def _analysis(settings: SweepSettings, workdir: Path, seed: int) -> dict[str, Any]:
    """The measures that the strategies need, of the parent."""
    wanted = [needed_measure(s) for s in split_list(settings.strategies) if s in MEASURED]
    if not wanted:
        return {}
    measures, parent = tuple(dict.fromkeys(wanted)), parent_of(settings)
    about = work.analysis_settings(settings, measures, settings.protect, seed)
    described = describe(*parent)

    def asked(inputs: Inputs) -> dict[str, Any]:
        return {
            "parent": inputs.model(described),
            "text": inputs.texts(calibration_text(settings), settings.text.field),
            "settings": dataclasses.asdict(about) | {"measures": []},
        }

    def run() -> dict[str, Any]:
        say(f"measuring layers, seed {seed}")
        return work.analysis(settings, parent, about)

    ways = [asked(inputs) for inputs in WAYS]
    name = f"analysis-{seed}"
    records = AnalysisRecords(workdir / name / ANALYSIS, measures)
    (task,) = look(records, [Stage(name, ways[0], (), run)], [list(map(digest, ways))])
    return finish(records, task)


# ------------------------------------------------------------------------------------ Points


def _rows(job: Job, points: Sequence[Point]) -> list[dict[str, Any]]:
    """The rows of all points, in order; those that are missing are measured and appended."""
    records, keys = PointRecords(job.workdir / POINTS), _keys(job, points)
    run = functools.partial(_row, job, records.figures)
    stages = [
        Stage(stage_name(p.strategy, p.seed), {}, (), functools.partial(run, p, own))
        for p, own in zip(points, keys, strict=True)
    ]
    tasks, rows = look(records, stages, keys), []
    with progress("points", len(tasks), "points", sum(bool(task.done) for task in tasks)) as bar:
        for point, own, task in zip(points, keys, tasks, strict=True):
            rows.append(finish(records, task))
            if task.done:
                continue
            if point.healed and not job.settings.keep_healed:
                for folder in _runs(job, own):
                    healing.remove_run(folder, job.settings.heal.log)
            if point.repaired:
                repairs.remove(job.workdir, own)
            bar.advance(1, loss=rows[-1]["loss"])
    return rows


def _keys(job: Job, points: Sequence[Point]) -> list[list[str]]:
    """Of all that a point's figures depend on, a point a list: as it is recorded now, and as an
    earlier chopjax would have recorded it."""
    text, heal = job.settings.text, training.meaning(dataclasses.asdict(job.settings.heal))
    score = scores.about(job.settings.score) | job.scored.identities
    ways = [
        (
            inputs.model(job.parent),
            inputs.texts(text.held_out, text.field),
            inputs.texts(text.train, text.field) if text.train else [],
            inputs.teacher(job.settings.heal.teacher),
        )
        for inputs in WAYS
    ]

    mended = [repairs.about(job.settings, inputs) for inputs in WAYS]

    def key(point: Point, way: int) -> str:
        origin, held_out, train, teacher = ways[way]
        healed = heal | teacher | {"seed": point.seed, "text": train} if point.healed else None
        parts = [origin, held_out, list(point.keep), healed, score]
        if point.repaired:
            parts.append(mended[way] | {"seed": point.seed})
        return digest(parts)[:16]

    return [[key(point, way) for way in range(len(ways))] for point in points]


def _runs(job: Job, keys: Sequence[str]) -> list[Path]:
    """Where the training run of a healed point may have begun; it goes to the first."""
    return [job.workdir / "heal" / key for key in keys]


def _row(
    job: Job, known: Mapping[str, dict[str, Any]], point: Point, keys: Sequence[str]
) -> dict[str, Any]:
    """A point's row. known: key → figures. Two strategies may keep the same layers: the model is
    scored once."""
    same = [known[key] for key in keys if key in known]
    figures = same[0] if same else _figures(job, point, _runs(job, keys))
    return figures | point._asdict() | {"keep": ranges(point.keep), "key": keys[0]}


def _figures(job: Job, point: Point, runs: Sequence[Path]) -> dict[str, Any]:
    """What a model is worth."""
    begun, settings, parent = time.monotonic(), job.settings, job.parent
    say(
        f"{point.strategy}: layers {ranges(point.keep)}"
        + (", repaired" if point.repaired else "")
        + (", healed" if point.healed else "")
        + (f", seed {point.seed}" if point.healed or point.repaired else "")
    )
    start = None
    if point.repaired:
        start = repairs.repaired(settings, job.workdir, runs[0].name, point)
        loaded = load(str(start), dtype=settings.score.dtype)
        params, model_config = loaded.params, loaded.config
    else:
        params, model_config = (
            chop_params(parent.params, point.keep),
            parent.config.keep(point.keep),
        )
    if point.healed:
        same = settings.score.dtype == settings.heal.compute.param_dtype
        config = _heal_config(settings, job.workdir, point.keep, point.seed, start)
        folder = next((run for run in runs if run.exists()), runs[0])
        train(config, folder, params=params if same else None)
        params = load(str(folder), dtype=settings.score.dtype).params
    model = dataclasses.replace(parent, params=params, config=model_config)
    engine = _engine(job, model)
    measured = work.held_out(settings, model, engine)
    on: dict[str, Any] = {"accuracy": {}, "chance": {}, "texts": {}}
    if job.scored:
        results = scores.measure(settings.score, job.scored, model, engine)
        on = scores.headlines(results, job.scored.texts)
    names = ("perplexity", "bits_per_byte", "loss_over_log_vocabulary", "tokens", "convention")
    return {
        "loss": measured["nats_per_token"],
        **{name: measured[name] for name in names},
        **on,
        "seconds": time.monotonic() - begun,
    }


def _engine(job: Job, model: Loaded) -> Engine:
    like = job.engines[job.parent.config]
    if model.config not in job.engines:
        shared = (like.compute, like.max_length, like.mesh)
        engine = Engine(model.config, model.params, *shared, tokenizer=like.tokenizer)
        job.engines[model.config] = engine
    return job.engines[model.config].with_params(model.params)


def _heal_config(
    settings: SweepSettings, workdir: Path, keep: Keep, seed: int, start: Path | None = None
) -> ConfigDict:
    """start: a chopped checkpoint to begin with; without one the run chops the parent itself."""
    return healing.heal_config(
        settings,
        {"model": str(start)} if start else healing.from_parent(settings, keep),
        {"train": str(workdir / "tokens")},
        seed=seed,
        log=dataclasses.replace(settings.heal.log, tensorboard=False),
    )
