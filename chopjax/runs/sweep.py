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
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from chopjax.checkpoint.load import Loaded, load
from chopjax.chop.configurations import resolve_remove
from chopjax.chop.surgery import chop_params
from chopjax.disk.atomic import USERS_ERRORS, new_file
from chopjax.disk.mark import is_taken, marked_by, some
from chopjax.errors import UserError
from chopjax.keep import Keep, ranges
from chopjax.models.config import ModelConfig
from chopjax.progress import progress, say
from chopjax.report.sweep import check_report, write_report
from chopjax.runs import scored as scores
from chopjax.runs.inputs import WAYS, digest
from chopjax.runs.points import Point, plan
from chopjax.runs.settings import SweepSettings, read_sweep, split_list
from chopjax.runs.work import heal_config, held_out, prepare_text
from chopjax.runs.workdir import check_space, opened
from chopjax.score.engine import Engine
from chopjax.score.model import open_engine
from chopjax.train import settings as training
from chopjax.train.loop import train
from chopjax.train.own_files import foreign_files
from chopjax.train.settings import LogSettings
from chopjax.train.space import run_bytes
from chopjax.train.wandb_run import check_wandb

POINTS = "points.jsonl"
VERB = "sweep"


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
        loaded, engine = open_engine(
            settings.model,
            settings.revision or None,
            settings.score.dtype,
            settings.score.max_length or None,
        )
        if settings.healed:
            _check_space(settings, workdir, loaded.config)
        points = list(plan(settings, workdir, loaded.config.num_layers))
        if settings.healed:
            prepare_text(settings, settings.text.train, workdir / "tokens")
        parent = Parent(loaded, {loaded.config.num_layers: engine}, scored)
        rows = _do(settings, workdir, parent, points)
        return write_report(workdir, dataclasses.asdict(settings), rows, command)


def _check_places(workdir: Path) -> None:
    check_report(workdir)
    if marked_by(workdir) == VERB or read_rows(workdir / POINTS):
        return
    places = [workdir / name for name in ("tokens", "tokens.partial", "heal", POINTS)]
    taken = [path.name for path in (*places, *workdir.glob("analysis-*")) if is_taken(path)]
    if taken:
        raise UserError(
            f"{workdir} holds {some(taken)}, and no sweep is known to have put it there; move it "
            "away or give another --workdir"
        )


def _check_space(settings: SweepSettings, workdir: Path, model: ModelConfig) -> None:
    """Of the healed points, one for every number of layers, strategy and seed, one is on the disk
    at a time, or all with `keep_healed`."""
    counts = [resolve_remove(n, model.num_layers) for n in split_list(settings.remove)]
    kept = [model.keep(range(model.num_layers - count)) for count in counts]
    sizes = [run_bytes(config, settings.heal) for config in kept]
    times = len(split_list(settings.strategies)) * len(split_list(settings.seeds))
    total = times * sum(sizes) if settings.keep_healed else max(sizes)
    check_space(workdir, [settings.text.train], settings.text.field, total)


# ------------------------------------------------------------------------------ Doing them


class Parent(NamedTuple):
    """What all points share. engines: by number of layers, the parent's among them; models of one
    depth run the same programs."""

    loaded: Loaded
    engines: dict[int, Engine]
    scored: scores.Scored


def _do(
    settings: SweepSettings, workdir: Path, parent: Parent, points: Sequence[Point]
) -> list[dict[str, Any]]:
    """The rows of all points, in order; those that are missing are measured and appended."""
    path = workdir / POINTS
    _cut_torn_line(path)
    rows = read_rows(path)
    done = {(row["strategy"], row["seed"], row["key"]): row for row in rows}
    measured = {row["key"]: row for row in rows}
    jobs = list(zip(points, _keys(settings, parent, points), strict=True))
    found = [_first(done, [(p.strategy, p.seed, key) for key in keys]) for p, keys in jobs]
    with progress("points", len(jobs), "points", len(jobs) - found.count(None)) as bar:
        for index, (point, keys) in enumerate(jobs):
            if found[index] is not None:
                continue
            runs = [workdir / "heal" / key for key in keys]
            # Two strategies may keep the same layers: the model is scored once.
            values = _first(measured, keys) or _score(settings, workdir, parent, point, runs)
            row = {**values, **_about(point), "key": keys[0]}
            _append(path, row)
            found[index] = measured[keys[0]] = row
            if point.healed and not settings.keep_healed:
                for run in runs:
                    _remove_run(run, settings.heal.log)
            bar.advance(1, loss=row["loss"])
    return [row for row in found if row is not None]


def _first(rows: Mapping[Any, dict[str, Any]], keys: Sequence[Any]) -> dict[str, Any] | None:
    return next((rows[key] for key in keys if key in rows), None)


def _remove_run(folder: Path, log: LogSettings) -> None:
    """The training run of a point that is written down."""
    if not folder.is_dir():
        return
    if others := foreign_files(folder, bool(log.wandb), bool(log.profile)):
        say(f"{folder} stays: it holds what is not known to be the run's: {some(others)}")
    else:
        shutil.rmtree(folder)


def _about(point: Point) -> dict[str, Any]:
    return {
        "strategy": point.strategy,
        "remove": point.remove,
        "keep": ranges(point.keep),
        "healed": point.healed,
        "seed": point.seed,
    }


def _keys(settings: SweepSettings, parent: Parent, points: Sequence[Point]) -> list[list[str]]:
    """Of all that a point's figures depend on, a point a list: as it is recorded now, and as an
    earlier chopjax would have recorded it."""
    field, train = settings.text.field, settings.text.train
    heal = training.meaning(dataclasses.asdict(settings.heal))
    score = scores.about(settings.score) | parent.scored.identities
    depends = [
        (
            inputs.model(parent.loaded),
            inputs.texts(settings.text.held_out, field),
            inputs.texts(train, field) if train else [],
        )
        for inputs in WAYS
    ]

    def key(point: Point, origin: Any, scored: Any, text: Any) -> str:
        healing = heal | {"seed": point.seed, "text": text} if point.healed else None
        return digest([origin, scored, list(point.keep), healing, score])[:16]

    return [[key(point, *inputs) for inputs in depends] for point in points]


def _score(
    settings: SweepSettings, workdir: Path, parent: Parent, point: Point, runs: Sequence[Path]
) -> dict[str, Any]:
    """The figures of one model. runs: where its training may have begun; else it goes to the
    first."""
    begun = time.monotonic()
    say(
        f"{point.strategy}: layers {ranges(point.keep)}"
        + (f", healed, seed {point.seed}" if point.healed else "")
    )
    params = chop_params(parent.loaded.params, point.keep)
    if point.healed:
        same = settings.score.dtype == settings.heal.compute.param_dtype
        healing = _heal_config(settings, workdir, point.keep, point.seed)
        folder = next((run for run in runs if run.exists()), runs[0])
        train(healing, folder, params=params if same else None)
        params = load(str(folder), dtype=settings.score.dtype).params
    config = parent.loaded.config.keep(point.keep)
    model = dataclasses.replace(parent.loaded, params=params, config=config)
    engine = _engine(parent, model)
    found = held_out(settings, model, engine)
    on: dict[str, Any] = {"accuracy": {}, "chance": {}, "texts": {}}
    if parent.scored:
        results = scores.measure(settings.score, parent.scored, model, engine)
        on = scores.headlines(results, parent.scored.texts)
    return {
        "loss": found["nats_per_token"],
        "perplexity": found["perplexity"],
        "bits_per_byte": found["bits_per_byte"],
        "loss_over_log_vocabulary": found["loss_over_log_vocabulary"],
        "tokens": found["tokens"],
        "convention": found["convention"],
        **on,
        "seconds": time.monotonic() - begun,
    }


def _engine(parent: Parent, model: Loaded) -> Engine:
    depth, like = model.config.num_layers, parent.engines[parent.loaded.config.num_layers]
    if depth not in parent.engines:
        parent.engines[depth] = Engine(
            model.config,
            model.params,
            like.compute,
            like.max_length,
            like.mesh,
            tokenizer=like.tokenizer,
        )
    return parent.engines[depth].with_params(model.params)


def _heal_config(settings: SweepSettings, workdir: Path, keep: Keep, seed: int) -> ConfigDict:
    return heal_config(
        settings.heal,
        {"train": str(workdir / "tokens")},
        model=settings.model,
        revision=settings.revision,
        seed=seed,
        chop=training.ChopSettings(keep=",".join(map(str, keep))),
        log=dataclasses.replace(settings.heal.log, tensorboard=False),
    )


# ------------------------------------------------------------------------------- points.jsonl


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The points done so far, without what a killed run left of a line. Raises UserError for what
    no sweep writes."""
    return [json.loads(line) for line in _whole_lines(path).splitlines()]


def _whole_lines(path: Path) -> str:
    if not path.exists():
        return ""
    try:
        text = path.read_text()
        end = text.rfind("\n") + 1
        for number, line in enumerate(text[:end].splitlines(), 1):
            if not _is_row(json.loads(line)):
                raise ValueError(f"line {number} is not a point of a sweep")
        if not text[end:].startswith('{"loss": '[: len(text) - end]):
            raise ValueError("the last line is not a point of a sweep")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: damaged ({error}). Delete the line, or move the file away to measure all "
            "points again."
        ) from error
    return text[:end]


_ROW: dict[str, type | tuple[type, ...]] = {
    "strategy": str,
    "seed": int,
    "key": str,
    "remove": int,
    "keep": str,
    "healed": bool,
    "accuracy": dict,
    "chance": dict,
}
_NUMBERS = ("loss", "perplexity", "bits_per_byte", "loss_over_log_vocabulary", "tokens")


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(name), kind) for name, kind in _ROW.items())
        and all(type(row.get(name)) in (int, float) for name in _NUMBERS)
    )


def _cut_torn_line(path: Path) -> None:
    whole = _whole_lines(path)
    if path.exists() and path.stat().st_size > len(whole.encode()):
        with new_file(path, overwrite=True) as temporary:
            temporary.write_text(whole)


def _append(path: Path, row: Mapping[str, Any]) -> None:
    try:
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in USERS_ERRORS:
            raise
        raise UserError(
            f"{path}: {error.strerror}. The points before this one are safe; make room or mend "
            "the folder, then start again."
        ) from error
