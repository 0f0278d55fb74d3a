"""`chopjax sweep`: many ways to make a model smaller, each scored before and after healing.

    WORKDIR/points.jsonl       one row a point, appended as it finishes
    WORKDIR/analysis-SEED/     the measures that strategies need, and measured.json, from which an
                               analysis that was killed or is to have more goes on
    WORKDIR/tokens/            the text to heal on
    WORKDIR/tokens-held_out/   the text to measure on, where methods of healing are compared
    WORKDIR/step_times.json    how long steps take here, where the budget is a time
    WORKDIR/heal/KEY/          the training run of the point at work, removed when it is scored
    WORKDIR/repaired/KEY/      its repaired model, where it is repaired, likewise
    WORKDIR/made/KEY/          the model of a point that is more than a chop (changes.py), until
                               no point wants it any more; with `keep_healed` training runs stay,
                               and what adapters among them stand on
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

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from chopjax.checkpoint.describe import describe
from chopjax.checkpoint.load import Loaded, load
from chopjax.checkpoint.size import size_of
from chopjax.checkpoint.source import Checkpoint
from chopjax.chop.analysis import needed_measure, way_of
from chopjax.chop.choice import sleb_rounds
from chopjax.chop.importance import ANALYSIS, MEASURED, parse_protect
from chopjax.chop.surgery import chop_params
from chopjax.disk.mark import is_taken, marked_by, some
from chopjax.errors import UserError
from chopjax.keep import ranges
from chopjax.models import parameters
from chopjax.models.config import ModelConfig
from chopjax.models.formats import Kind
from chopjax.models.quantized import kind_of
from chopjax.narrow.units import Counts
from chopjax.progress import progress, say
from chopjax.report.sweep import check_report, write_report
from chopjax.runs import changes, costs, healing, point_runs, repairs, work
from chopjax.runs import scored as scores
from chopjax.runs.budget import Cost, parse_budget
from chopjax.runs.inputs import WAYS, Inputs, digest
from chopjax.runs.methods import CHOPPED, SCRATCH, Method
from chopjax.runs.points import PARENT, Point, counts_of, plan, strategies_of, why_not
from chopjax.runs.records import AnalysisRecords, PointRecords, read_rows, stage_name
from chopjax.runs.settings import (
    Model,
    SweepSettings,
    calibration_text,
    heal_of,
    methods_of,
    parent_of,
    read_sweep,
    split_list,
)
from chopjax.runs.stages import Stage, finish, look
from chopjax.runs.strategies import before_training, masked_by
from chopjax.runs.strategies import kind_of as in_few_bits
from chopjax.runs.workdir import check_space, opened
from chopjax.score.engine import Engine
from chopjax.train import settings as training
from chopjax.train.space import run_bytes
from chopjax.train.wandb_run import check_wandb

POINTS = "points.jsonl"
STORES = (point_runs.TOKENS, point_runs.HELD_OUT)
FOLDERS = ("heal", repairs.FOLDER, changes.FOLDER)
OWN = (*STORES, *(f"{name}.partial" for name in STORES), *FOLDERS, POINTS)
VERB = "sweep"
Shape = tuple[ModelConfig, Kind | None]


class Job(NamedTuple):
    """What all points share. parent: in memory; engines and forward passes' times: by configuration
    and the format of quantized weights, the parent's among them; such models run the same
    programs."""

    settings: SweepSettings
    workdir: Path
    parent: Loaded
    engines: dict[Shape, Engine]
    times: dict[Shape, dict[str, Any]]
    scored: scores.Scored


def sweep(config: ConfigDict, workdir: Path, command: str = "") -> dict[str, Any]:
    """Do the points that are missing, then draw; returns what report.json holds.

    command: how to do this again, for the report.
    """
    settings = read_sweep(config)
    methods = methods_of(settings)
    trained = [method for method in methods if method.trained]
    strategies = strategies_of(settings)
    for method in trained:
        point_runs.check_settings(settings, workdir, method)
        for strategy in strategies:
            if not why_not(method, strategy):
                point_runs.check_settings(settings, workdir, method, strategy.changes)
    if trained:
        check_wandb(settings.heal.log.wandb)
    num_layers = describe(*parent_of(settings)).config.num_layers  # before it is read
    for strategy in strategies:
        counts_of(settings, strategy, num_layers)
    scored = scores.find(settings.score)
    with opened(workdir, VERB, _check_places):
        parent, engine = work.opened(settings.score, parent_of(settings))
        units = {each.name: changes.check(settings, parent, each) for each in strategies}
        if any(method.repaired for method in methods):
            repairs.check(settings, parent)
        if trained:
            for method in trained:
                healing.check_teacher_of(heal_of(settings, method), parent)
            _check_space(settings, workdir, parent.config, trained, units)
        seeds = [int(seed) for seed in split_list(settings.seeds)]
        analyses = {seed: _analysis(settings, workdir, seed) for seed in seeds}
        points = list(plan(settings, num_layers, analyses, units))
        if all(point.strategy == PARENT for point in points):
            raise UserError(
                f"remove: none of {settings.strategies} can remove {settings.remove} of "
                f"{num_layers} layers"
            )
        lacking = {m.name for m in methods if m.repaired} - {p.method.name for p in points}
        if settings.methods and lacking:
            raise UserError(f"methods: {some(sorted(lacking))}: no point can be repaired")
        job = Job(settings, workdir, parent, {_shape(parent): engine}, {}, scored)
        rows = _rows(job, points)
        costed = costs.CONVENTIONS if point_runs.compares(settings) else None
        return write_report(workdir, dataclasses.asdict(settings), rows, command, costed)


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


def _check_space(
    settings: SweepSettings,
    workdir: Path,
    model: ModelConfig,
    trained: Sequence[Method],
    units: Mapping[str, Counts],
) -> None:
    """Of the trained points, one for every number of layers, strategy, seed and method, one is on
    the disk at a time, or all with `keep_healed`.

    Raises UserError, too, where a budget of FLOPs is less than a step of some method.
    """
    points = [
        Point("", n, tuple(range(model.num_layers - n)), 0, method, strategy.changes, stays)
        for strategy in strategies_of(settings)
        for stays in [tuple(units[strategy.name].items())]
        for n in counts_of(settings, strategy, model.num_layers)
        for method in trained
        if not why_not(method, strategy)
    ]
    if not points:
        return
    different = list(dict.fromkeys(points))
    steps = [heal_of(settings, point.method).total_steps for point in different]
    if _in_flops(settings):
        begun = [(point, Cost()) for point in different]
        steps = [n for n, _ in point_runs.steps_of(settings, workdir, model, begun)]
    sizes = {}
    for point, count in zip(different, steps, strict=True):
        config = point_runs.config_of(settings, workdir, point, count)
        sizes[point] = run_bytes(point.config(model), training.read(config))
    seeds = len(split_list(settings.seeds))
    total = seeds * sum(map(sizes.__getitem__, points))
    if not settings.keep_healed:
        total = max(sizes.values())
    check_space(workdir, [settings.text.train], settings.text.field, total)


def _in_flops(settings: SweepSettings) -> bool:
    """Whether there is a budget of FLOPs, which needs no measurement."""
    return bool(settings.budget) and not parse_budget(settings.budget).is_time


def _analysis(settings: SweepSettings, workdir: Path, seed: int) -> dict[str, Any]:
    """The measures that the strategies need, of the parent."""
    wanted = [needed_measure(s.chop) for s in strategies_of(settings) if s.chop in MEASURED]
    if not wanted:
        return {}
    measures, parent = tuple(dict.fromkeys(wanted)), parent_of(settings)
    about = work.analysis_settings(settings, measures, settings.protect, seed)
    described = describe(*parent)
    about = dataclasses.replace(about, rounds=_rounds(settings, described.config.num_layers))

    def asked(inputs: Inputs) -> dict[str, Any]:
        return {
            "parent": inputs.model(described),
            "text": inputs.texts(calibration_text(settings), settings.text.field),
            "settings": way_of(about),
        }

    def run() -> dict[str, Any]:
        say(f"measuring layers, seed {seed}")
        return work.analysis(settings, parent, about, journal)

    ways = [asked(inputs) for inputs in WAYS]
    name = f"analysis-{seed}"
    journal = workdir / name / "measured.json"
    records = AnalysisRecords(workdir / name / ANALYSIS, measures, about.rounds)
    (task,) = look(records, [Stage(name, ways[0], (), run)], [list(map(digest, ways))])
    return finish(records, task)


def _rounds(settings: SweepSettings, num_layers: int) -> int:
    """How many layers SLEB's search removes: as many as go at its deepest point."""
    most = parse_protect(settings.protect).most(num_layers)  # points beyond it are left out
    rounds = [
        sleb_rounds(strategy.chop, count)
        for strategy in strategies_of(settings)
        for count in counts_of(settings, strategy, num_layers)
        if count <= most
    ]
    return max(rounds, default=0)


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
    _prepare(job, [point for point, task in zip(points, tasks, strict=True) if not task.done])
    wanted = [None if t.done else _made_in(job, p) for p, t in zip(points, tasks, strict=True)]
    bases = [_made_in(job, point) for point in points if _base_stays(job, point)]
    with progress("points", len(tasks), "points", sum(bool(task.done) for task in tasks)) as bar:
        for point, own, task in zip(points, keys, tasks, strict=True):
            rows.append(finish(records, task))
            made = wanted.pop(0)
            if task.done:
                continue
            if made and made not in (*wanted, *bases):
                changes.remove(made)
            if point.method.trained and not job.settings.keep_healed:
                for folder in _runs(job, own):
                    healing.remove_run(folder, job.settings.heal.log)
            if point.method.repaired and not _base_stays(job, point):
                repairs.remove(job.workdir, own)
            bar.advance(1, loss=rows[-1]["loss"])
    return rows


def _prepare(job: Job, missing: Sequence[Point]) -> None:
    """What the points that are missing need: steps within the budget, and text as tokens.

    Raises UserError where a method cannot make a step.
    """
    settings, text = job.settings, job.settings.text
    trained, parent = [point for point in missing if point.method.trained], job.parent.config
    if trained:
        # How long a repair takes is known when it was made.
        known = [point.method.repaired and _in_flops(settings) for point in trained]
        spent = [
            costs.repair_at_most(settings.calibration, parent, point.keep, settings.repair)
            if each
            else Cost()
            for point, each in zip(trained, known, strict=True)
        ]
        begun = list(zip(trained, spent, strict=True))
        point_runs.steps_of(settings, job.workdir, parent, begun)
        work.prepare_text(settings, text.train, job.workdir / point_runs.TOKENS)
    if missing and point_runs.compares(settings):
        work.prepare_text(settings, text.held_out, job.workdir / point_runs.HELD_OUT)


def _base_stays(job: Job, point: Point) -> bool:
    """Whether what a point is trained from stays on the disk: adapters that stay are nothing
    without it."""
    settings, method = job.settings, point.method
    healed = settings.keep_healed and bool(method.trained)
    return healed and heal_of(settings, method).adapter.rank > 0


def _made_in(job: Job, point: Point) -> Path | None:
    """Where a point is made that is more than a chop."""
    if not before_training(point.changes):
        return None
    return changes.place(job.settings, job.workdir, job.parent, point)


def _keys(job: Job, points: Sequence[Point]) -> list[list[str]]:
    """Of all that a point's figures depend on, a point a list: as it is recorded now, and as an
    earlier chopjax would have recorded it."""
    settings, text, parent = job.settings, job.settings.text, job.parent.config
    score = scores.about(settings.score) | job.scored.identities
    windows = settings.heal.data if point_runs.compares(settings) else None
    ways = [
        (
            inputs.model(job.parent),
            inputs.texts(text.held_out, text.field),
            inputs.texts(text.train, text.field) if text.train else [],
        )
        for inputs in WAYS
    ]
    mended = [repairs.about(settings, inputs) for inputs in WAYS]

    def key(point: Point, way: int) -> str:
        (origin, held_out, train), inputs = ways[way], WAYS[way]
        healed, kept = None, list(point.keep)
        if point.method.trained:
            healed = point_runs.meaning(settings, point) | {"text": train}
            healed |= inputs.teacher(heal_of(settings, point.method).teacher)
        # Random weights have the layers' shapes alone.
        layers = repr(point.config(parent)) if point.method.trained == SCRATCH else kept
        parts = [origin, held_out, layers, healed, score]
        if point.method.repaired:
            parts.append(mended[way] | {"seed": point.seed})
        if point.changes:
            parts.append(changes.about(settings, inputs, point))
        if windows is not None:  # in which held-out text is measured, too
            parts.append([windows.sequence_length, windows.mask_documents])
        if settings.draft and point.strategy != PARENT:
            parts.append({"draft": settings.draft})
        if settings.latency:
            parts.append({"latency": [settings.score.latency_batch, settings.score.latency_length]})
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
    return figures | point.row() | {"key": keys[0]}


def _figures(job: Job, point: Point, runs: Sequence[Path]) -> dict[str, Any]:
    """What a model is worth."""
    begun, settings, parent = time.monotonic(), job.settings, job.parent
    method, workdir = point.method, job.workdir
    say(
        f"{point.strategy}: layers {ranges(point.keep)}"
        + (f", {method.name}, seed {point.seed}" if method != CHOPPED else "")
    )
    start, cost = None, Cost()
    figures: dict[str, Any] = {"parameters": parameters.count(point.config(parent.config))}
    if (folder := _made_in(job, point)) is None:
        params, model_config = chop_params(parent.params, point.keep), point.config(parent.config)
        if isinstance(parent.weights, Checkpoint):
            figures |= size_of(parent.weights, point.keep)._asdict()
    else:
        start = changes.made(settings, folder, point)
        codes = bool(in_few_bits(point.changes))
        loaded, _ = work.opened(settings.score, Model(str(start)), codes)
        params, model_config = loaded.params, loaded.config
        assert isinstance(loaded.weights, Checkpoint)
        figures |= size_of(loaded.weights)._asdict()
    if method.repaired:
        start = repairs.repaired(settings, workdir, runs[0].name, point)
        cost = costs.repair_cost(parent.config, point.keep, repairs.record(start))
        loaded = load(str(start), dtype=settings.score.dtype)
        params, model_config = loaded.params, loaded.config
        figures["healing"] = {"steps": 0, "tokens": 0, **cost._asdict()}
    if method.trained:
        folder = next((run for run in runs if run.exists()), runs[0])
        figures["healing"] = point_runs.train_point(
            settings, workdir, folder, point, parent.config, start, params, cost
        )
        params = load(str(folder), dtype=settings.score.dtype).params
        if masked_by(point.changes):
            figures["not_zero"] = sum(int(jnp.count_nonzero(x)) for x in jax.tree.leaves(params))
    if point_runs.compares(settings) and kind_of(params) is None:
        curve = figures.get("healing", {}).get("curve")
        figures["window_loss"] = (
            curve[-1]["loss"]
            if curve
            else point_runs.window_loss(settings, workdir, model_config, params)
        )
    model = dataclasses.replace(parent, params=params, config=model_config)
    engine = _engine(job, model)
    measured = work.held_out(settings, model, engine)
    on: dict[str, Any] = {"accuracy": {}, "chance": {}, "texts": {}}
    if job.scored:
        results = scores.measure(settings.score, job.scored, model, engine)
        on = scores.headlines(results, job.scored.texts)
    if settings.draft and point.strategy != PARENT:
        own = next(iter(job.engines.values()))  # the parent's
        figures["draft"] = work.drafted(settings, parent, own, engine)
    if settings.latency:
        figures["latency"] = _latency(job, model)
    names = ("perplexity", "bits_per_byte", "loss_over_log_vocabulary", "tokens", "convention")
    return {
        "loss": measured["nats_per_token"],
        **{name: measured[name] for name in names},
        **on,
        **figures,
        "seconds": time.monotonic() - begun,
    }


def _latency(job: Job, model: Loaded) -> dict[str, Any]:
    """Seconds of a forward pass, and how many times as long the parent took in the same turns: the
    machine's speed differs from point to point."""
    own, parent = _shape(model), job.parent
    if own not in job.times:
        models = {PARENT: (parent.params, parent.config)}
        if own != _shape(parent):
            models["point"] = (model.params, model.config)
        found = work.timed(job.settings.score, models)
        seconds = list(found["seconds"].values())
        both = {"seconds": seconds[-1], "speed_up": seconds[0] / seconds[-1]}
        job.times[own] = found | both
    return job.times[own]


def _shape(model: Loaded) -> Shape:
    return model.config, kind_of(model.params)


def _engine(job: Job, model: Loaded) -> Engine:
    like, own = next(iter(job.engines.values())), _shape(model)
    if own not in job.engines:
        shared = (like.compute, like.max_length, like.mesh)
        engine = Engine(model.config, model.params, *shared, tokenizer=like.tokenizer)
        job.engines[own] = engine
    return job.engines[own].with_params(model.params)
