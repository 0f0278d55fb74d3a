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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from chopjax import scored as scores
from chopjax.checkpoint.atomic import USERS_ERRORS, new_file
from chopjax.checkpoint.load import Loaded, load
from chopjax.checkpoint.mark import begin_mark, check_mark, is_taken, marked_by, some
from chopjax.chop.configurations import Keep, ranges, resolve_remove
from chopjax.chop.surgery import chop_params
from chopjax.data.lists import text_names
from chopjax.data.prepare import prepare
from chopjax.data.sources import find_sources
from chopjax.data.tokenizer import load_tokenizer
from chopjax.errors import UserError
from chopjax.inputs import Contents, Inputs, Stamps
from chopjax.models.config import ModelConfig
from chopjax.progress import progress, say
from chopjax.report.sweep import check_report, write_report
from chopjax.room import check_sweep
from chopjax.score.engine import Engine
from chopjax.score.model import open_engine
from chopjax.score.perplexity import perplexity, read_texts
from chopjax.score.run import evaluate
from chopjax.sweep_points import Point, plan
from chopjax.sweep_settings import SweepSettings, names, read
from chopjax.train import settings as training
from chopjax.train.loop import train
from chopjax.train.own_files import foreign_files
from chopjax.train.settings import LogSettings
from chopjax.train.wandb_run import check_wandb
from chopjax.train.workdir import owned

POINTS = "points.jsonl"
VERB = "sweep"


def sweep(config: ConfigDict, workdir: Path, command: str = "") -> dict[str, Any]:
    """Do the points that are missing, then draw; returns what report.json holds.

    command: how to do this again, for the report.
    """
    settings = read(config)
    if settings.healed:
        training.read(_heal_config(settings, workdir, (0,), 0))
        check_wandb(settings.heal.log.wandb)
    scored = scores.find(settings.score)
    with owned(workdir, check_workdir):
        if marked_by(workdir) is None:
            begin_mark(workdir, VERB)
        contents = Contents()
        loaded, engine = open_engine(
            settings.model,
            settings.revision or None,
            settings.score.dtype,
            settings.score.max_length or None,
        )
        if settings.healed:
            _check_room(settings, workdir, loaded.config)
        points = list(plan(settings, workdir, loaded.config.num_layers, contents))
        if settings.healed:
            _prepare(settings, workdir)
        about = [
            _about_inputs(settings, loaded, inputs) | {"scored": scored.identities}
            for inputs in (contents, Stamps())
        ]
        rows = _do(settings, workdir, loaded, engine, scored, points, about)
        return write_report(workdir, dataclasses.asdict(settings), rows, command)


def check_workdir(workdir: Path) -> None:
    """Raise UserError where others' files stand in the way."""
    check_mark(workdir)
    if marked_by(workdir) not in (None, VERB):
        raise UserError(
            f"{workdir} is a folder of `chopjax {marked_by(workdir)}`; give another --workdir"
        )
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


def _about_inputs(settings: SweepSettings, loaded: Loaded, inputs: Inputs) -> dict[str, Any]:
    field = settings.text.field
    return {
        "parent": inputs.model(loaded),
        "held_out": inputs.texts(settings.text.held_out, field),
        "train": inputs.texts(settings.text.train, field) if settings.text.train else [],
    }


def _check_room(settings: SweepSettings, workdir: Path, model: ModelConfig) -> None:
    """For every number of layers and every strategy and seed a healed point."""
    counts = [resolve_remove(n, model.num_layers) for n in names(settings.remove)]
    times = len(names(settings.strategies)) * len(names(settings.seeds))
    kept = [model.num_layers - count for count in counts] * times
    sources = find_sources(text_names(settings.text.train), settings.text.field)
    texts = [file for source in sources for file in source.files]
    check_sweep(workdir, model, kept, settings.heal, settings.keep_healed, texts)


# ------------------------------------------------------------------------------ Doing them


def _do(
    settings: SweepSettings,
    workdir: Path,
    loaded: Loaded,
    engine: Engine,
    scored: scores.Scored,
    points: Sequence[Point],
    about: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """The rows of all points, in order; those that are missing are measured and appended.

    about: parent and texts, as they are now; and as an earlier chopjax would have recorded them.
    """
    path = workdir / POINTS
    _cut_torn_line(path)
    rows = read_rows(path)
    done = {(row["strategy"], row["seed"], row["key"]): row for row in rows}
    measured = {row["key"]: row for row in rows}
    engines: dict[int, Engine] = {}
    found = []
    keys_of = [[_key(settings, each, point) for each in about] for point in points]
    known = sum(
        any((point.strategy, point.seed, key) in done for key in keys)
        for point, keys in zip(points, keys_of, strict=True)
    )
    with progress("points", len(points), "points", known) as bar:
        for point, keys in zip(points, keys_of, strict=True):
            key = keys[0]
            rows_before = [done.get((point.strategy, point.seed, each)) for each in keys]
            row = next((each for each in rows_before if each is not None), None)
            if row is None:
                # Two strategies may keep the same layers: the model is scored once.
                values = next((measured[each] for each in keys if each in measured), None)
                if values is None:
                    folders = [workdir / "heal" / each for each in keys]
                    folder = next((each for each in folders if each.exists()), folders[0])
                    values = _score(
                        settings, workdir, folder, loaded, engine, engines, scored, point
                    )
                row = {**values, **_about(point), "key": key}
                _append(path, row)
                measured[key] = row
                if point.healed and not settings.keep_healed:
                    for each in keys:
                        _remove_run(workdir / "heal" / each, settings.heal.log)
                bar.advance(1, loss=row["loss"])
            found.append(row)
    return found


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


def _key(settings: SweepSettings, about: Mapping[str, Any], point: Point) -> str:
    """Of all that a point's figures depend on. about: parent and texts, as they are now."""
    healing: Any = None
    if point.healed:
        flat = training.flat(dataclasses.asdict(settings.heal))
        healing = {k: v for k, v in flat.items() if not k.startswith(training.MAY_CHANGE)}
        healing |= {"seed": point.seed, "text": about["train"]}
    score = scores.about(settings.score) | about["scored"]
    content = [about["parent"], about["held_out"], list(point.keep), healing, score]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _score(
    settings: SweepSettings,
    workdir: Path,
    folder: Path,
    loaded: Loaded,
    engine: Engine,
    engines: dict[int, Engine],
    scored: scores.Scored,
    point: Point,
) -> dict[str, Any]:
    begun = time.monotonic()
    say(
        f"{point.strategy}: layers {ranges(point.keep)}"
        + (f", healed, seed {point.seed}" if point.healed else "")
    )
    params = chop_params(loaded.params, point.keep)
    if point.healed:
        same = settings.score.dtype == settings.heal.compute.param_dtype
        healing = _heal_config(settings, workdir, point.keep, point.seed)
        train(healing, folder, params=params if same else None)
        params = load(str(folder), dtype=settings.score.dtype).params
    config = loaded.config.with_layers(len(point.keep))
    model = dataclasses.replace(loaded, params=params, config=config)
    # Models of one depth run the same programs.
    base = engines.get(len(point.keep))
    scorer = (
        base.with_params(params)
        if base
        else Engine(
            config,
            params,
            engine.compute,
            engine.max_length,
            engine.mesh,
            tokenizer=engine.tokenizer,
        )
    )
    engines.setdefault(len(point.keep), scorer)
    texts = read_texts(text_names(settings.text.held_out), settings.text.field)
    found = perplexity(scorer, load_tokenizer(loaded.folder), texts)
    return {
        "loss": found["nats_per_token"],
        "perplexity": found["perplexity"],
        "bits_per_byte": found["bits_per_byte"],
        "loss_over_log_vocabulary": found["loss_over_log_vocabulary"],
        "tokens": found["tokens"],
        "convention": found["convention"],
        **_accuracies(settings, model, scorer, scored),
        "seconds": time.monotonic() - begun,
    }


def _accuracies(
    settings: SweepSettings, model: Loaded, engine: Engine, scored: scores.Scored
) -> dict[str, Any]:
    """Accuracy of every task, what guessing would give, and the figures of texts."""
    if not scored:
        return {"accuracy": {}, "chance": {}, "texts": {}}
    found = evaluate(
        model,
        engine,
        scored.tasks,
        limit=settings.score.limit or None,
        add_bos_token=scores.BOS[settings.score.bos],
        texts=scored.texts,
    )
    accuracy = {}
    for task, metrics in found["results"].items():
        metric = next((m for m in ("acc_norm,none", "acc,none") if m in metrics), None)
        if metric:
            error = metrics.get(metric.replace(",", "_stderr,"))
            accuracy[task] = [metrics[metric], error if isinstance(error, float) else None]
    return {
        "accuracy": accuracy,
        "chance": {task: found["chance"].get(task) for task in accuracy},
        "texts": scores.measured_on(found, scored.texts)["texts"],
    }


# --------------------------------------------------------------------------------- Healing


def _prepare(settings: SweepSettings, workdir: Path) -> None:
    prepare(
        text_names(settings.text.train),
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
