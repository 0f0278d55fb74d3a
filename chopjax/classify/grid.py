"""`chopjax classify`: layers cut off, the rest taught to classify, many times over.

The parent is read once, and of it the layers that any cell keeps; a depth slices them in memory.
What is compiled for a depth, method and head serves all seeds.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from chopjax.checkpoint.describe import Description, describe
from chopjax.checkpoint.identity import of_description
from chopjax.checkpoint.load import load
from chopjax.chop.surgery import chop_params
from chopjax.classify import metrics, results
from chopjax.classify.examples import Example, fingerprint, read_examples
from chopjax.classify.features import Reader, make_reader, read_features
from chopjax.classify.learner import Learner, Question, adapter_of, count, make_learner
from chopjax.classify.parts import (
    FeaturePart,
    Part,
    bucket_lengths,
    rounded_up,
    token_part,
)
from chopjax.classify.prompts import Material, label_ids, make_material
from chopjax.classify.settings import Cell, ClassifySettings, cells, check
from chopjax.classify.split import Split, draw
from chopjax.classify.templates import Template, read_template
from chopjax.classify.training import Trained, predict, train
from chopjax.classify.ways import VIRTUAL_TOKENS, trains
from chopjax.data.tokenizer import Tokenizer, check_ids, load_tokenizer
from chopjax.keep import Keep, ranges
from chopjax.models import adapter_settings, parameters
from chopjax.models.compute import Compute
from chopjax.models.mesh import make_mesh
from chopjax.models.parameters import Params
from chopjax.progress import Bar, progress

PARTS = ("train", "held_out", "test")


@dataclasses.dataclass(frozen=True)
class Task:
    """What all cells share. materials: a seed each."""

    settings: ClassifySettings
    description: Description
    template: Template
    label_ids: tuple[int, ...]
    materials: list[Material]
    buckets: tuple[int, ...]  # that whole prompts are padded to
    tails: tuple[int, ...]  # that they are padded to without what all of a seed share
    slots: int  # that this is padded to
    compute: Compute
    mesh: Mesh


class Outcome(NamedTuple):
    """A row of results.json, and what was trained for it; None for nothing."""

    row: results.Row
    trained: Trained | None


def prepare(settings: ClassifySettings) -> tuple[Task, dict[str, Any], list[Cell]]:
    """Everything that can be wrong, looked at before a weight is read; with the conditions that
    rows are measured under, and the cells."""
    check(settings)
    template = read_template(settings.template)
    description = describe(settings.model, settings.revision)
    config = description.config
    wanted = cells(settings, description)
    if "lora" in settings.methods:
        adapter = adapter_of("lora", settings.rank, settings.targets)
        adapter_settings.target_paths(config, adapter)
    tokenizer = load_tokenizer(description.folder)
    train_examples, test_examples = (
        read_examples(names, template, settings.field, settings.label_field)
        for names in (settings.train, settings.test)
    )
    words = label_ids(tokenizer, template, template.query(train_examples[0].text))
    splits = [
        draw(train_examples, test_examples, template, settings.split, seed)
        for seed in range(settings.seeds)
    ]
    longest = config.max_positions - (VIRTUAL_TOKENS if "prefix" in settings.methods else 0)
    materials = _materials(tokenizer, template, train_examples, test_examples, splits, longest)
    check_ids(
        (ids for material in materials for ids in _ids(material)),
        config.vocab_size,
        lambda: tokenizer,
    )
    lengths = [(len(ids), m.shared) for m in materials for ids in _ids(m)]
    dtype = settings.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    task = Task(
        settings,
        description,
        template,
        words,
        materials,
        bucket_lengths([whole for whole, _ in lengths], longest),
        bucket_lengths([whole - shared for whole, shared in lengths], longest),
        rounded_up(max(1, *(material.shared for material in materials))),
        Compute(dtype=dtype),
        make_mesh(devices=jax.local_devices()[:1]),
    )
    conditions = {
        "template": template.record(),
        "label_tokens": list(task.label_ids),
        "tokenizer": tokenizer.fingerprint,
        "train": fingerprint(train_examples),
        "test": fingerprint(test_examples),
        **dataclasses.asdict(settings.split),
        **dataclasses.asdict(settings.training),
        "dtype": dtype,
    }
    return task, conditions, wanted


def _materials(
    tokenizer: Tokenizer,
    template: Template,
    train_examples: Sequence[Example],
    test_examples: Sequence[Example],
    splits: Sequence[Split],
    longest: int,
) -> list[Material]:
    total = sum(len(s.train) + len(s.held_out) + len(s.test) for s in splits)
    with progress("tokenize prompts", total, "prompts") as bar:
        return [
            make_material(
                tokenizer, template, train_examples, test_examples, split, longest, bar.advance
            )
            for split in splits
        ]


def _ids(material: Material) -> list[np.ndarray]:
    return [ids for name in PARTS for ids in getattr(material, name).ids]


def classify(
    task: Task, conditions: dict[str, Any], wanted: Sequence[Cell], folder: Path
) -> results.Results:
    """Do the cells that are missing in the folder's results; returns them all."""
    description = task.description
    about = {
        "name": description.name,
        "revision": description.revision,
        "num_layers": description.config.num_layers,
        "parameters": parameters.count(description.config),
        "fingerprint": of_description(description),
    }
    known = results.begin(folder, about, task.template.name, conditions)
    missing = [cell for cell in wanted if results.find(known, _row_key(task, cell)) is None]
    if not missing:
        return known
    union = tuple(sorted({layer for cell in missing for layer in cell.keep}))
    parent = load(description, keep=union, dtype="float32").params
    shares = _shares(task, missing)
    with progress("classify", len(missing), "cells") as bar:
        for keep, own in _grouped(missing):
            depth = Depth(task, keep, chop_params(parent, tuple(map(union.index, keep))))
            for cell in own:
                outcome = _outcome(depth, known, cell, bar, shares[cell])
                results.add(folder, known, outcome.row)
    return known


def _grouped(missing: Sequence[Cell]) -> list[tuple[Keep, list[Cell]]]:
    """Cells that keep the same layers stand together, whatever strategy chose them."""
    groups: dict[Keep, list[Cell]] = {}
    for cell in missing:
        groups.setdefault(cell.keep, []).append(cell)
    return list(groups.items())


def _shares(task: Task, missing: Sequence[Cell]) -> dict[Cell, float]:
    """What each cell counts for in a bar of so many cells: by layers and examples, three times as
    much where they are trained on, all epochs."""

    def work(cell: Cell) -> float:
        sizes = {name: len(getattr(task.materials[cell.seed], name).ids) for name in PARTS}
        looked_at = sum(sizes.values())
        if cell.method != "none":
            looked_at += task.settings.training.epochs * (3 * sizes["train"] + sizes["held_out"])
        return float(len(cell.keep) * looked_at)

    each = {cell: work(cell) for cell in missing}
    total = sum(each.values())
    return {cell: len(missing) * own / total for cell, own in each.items()}


def _row_key(task: Task, cell: Cell) -> results.Row:
    """What tells a row apart, and what it was trained with."""
    settings = task.settings
    with_: dict[str, Any] = {}
    if trains(cell.method, cell.head):
        with_["learning_rate"] = settings.rate_of(cell.method)
    if cell.method == "lora":
        with_ |= {"rank": settings.rank, "targets": settings.targets}
    if cell.method == "prefix":
        with_["virtual_tokens"] = VIRTUAL_TOKENS
    return {
        "task": task.template.name,
        "strategy": cell.strategy,
        "keep": ranges(cell.keep),
        "method": cell.method,
        "head": cell.head,
        "seed": cell.seed,
        "settings": with_,
    }


# ------------------------------------------------------------------------------- One depth


class Depth:
    """A number of layers: its parameters, and what is made once for all of its cells."""

    def __init__(self, task: Task, keep: Keep, params: Params):
        self.task, self.keep, self.params = task, keep, params
        self.config = task.description.config.keep(keep)
        self._learners: dict[Question, Learner] = {}
        self._features: dict[int, dict[str, FeaturePart]] = {}
        self._reader: Reader | None = None

    def learner(self, cell: Cell) -> Learner:
        settings, task = self.task.settings, self.task
        question = Question(
            cell.method,
            cell.head,
            task.label_ids,
            settings.rate_of(cell.method),
            task.compute,
            adapter_of(cell.method, settings.rank, settings.targets),
        )
        if question not in self._learners:
            self._learners[question] = make_learner(self.config, question, task.mesh)
        return self._learners[question]

    def parts(self, cell: Cell, bar: Counted) -> dict[str, Part]:
        """Training, held-out and test examples of a cell's seed."""
        material = self.task.materials[cell.seed]
        prompts = {name: getattr(material, name) for name in PARTS}
        if cell.method != "none":
            return {name: token_part(each, self.task.buckets) for name, each in prompts.items()}
        if cell.seed not in self._features:
            if self._reader is None:
                self._reader = make_reader(self.config, self.task.compute)
            self._features[cell.seed] = read_features(
                self._reader,
                self.params,
                prompts,
                material.shared,
                self.task.slots,
                self.task.tails,
                bar.advance,
            )
        return dict(self._features[cell.seed])


class Counted:
    """A cell's part of the bar, all of which is done when it ends early."""

    def __init__(self, bar: Bar, share: float):
        self._bar, self._share, self._start, self._done = bar, share, bar.done, 0.0

    def advance(self, part: float, values: dict[str, Any] | None = None) -> None:
        self._done = min(self._done + part, 1.0)
        self._bar.update(self._start + self._share * self._done, **(values or {}))


def _outcome(depth: Depth, known: results.Results, cell: Cell, bar: Bar, share: float) -> Outcome:
    """A cell's row. Two strategies may keep the same layers: what is known is not done again."""
    row, counted = _row_key(depth.task, cell), Counted(bar, share)
    for other in known["rows"]:
        if all(other[name] == row[name] for name in row if name != "strategy"):
            counted.advance(1)
            return Outcome(other | row, None)
    begun = time.monotonic()
    shown = {"layers": len(cell.keep), "method": cell.method, "head": cell.head, "seed": cell.seed}
    counted.advance(0, shown)
    trained, figures = run_cell(depth, cell, counted)
    counted.advance(1)
    labels_X = depth.task.materials[cell.seed].test.labels
    row |= {
        "layers": len(cell.keep),
        **figures,
        "seconds": time.monotonic() - begun,
        "trained_parameters": 0 if trained is None else count(trained.trainable),
        "kept_parameters": parameters.count(depth.config),
        "train_examples": len(depth.task.materials[cell.seed].train.ids),
        "test_examples": len(labels_X),
        "chance": 1 / len(depth.task.template.words),
        "majority": metrics.majority(labels_X),
    }
    return Outcome(row, trained)


def run_cell(depth: Depth, cell: Cell, counted: Counted) -> tuple[Trained | None, dict[str, Any]]:
    """Train a cell, if anything is trained, and test its best state."""
    settings, learner = depth.task.settings.training, depth.learner(cell)
    parts = depth.parts(cell, counted)
    trained: Trained | None = None
    if trains(cell.method, cell.head):
        epochs = settings.epochs
        trained = train(
            learner,
            depth.params,
            parts["train"],
            parts["held_out"],
            settings,
            cell.seed,
            lambda part, values: counted.advance(part / (epochs + 1), values),
        )
    trainable = {} if trained is None else jax.device_put(trained.trainable)

    def predicted(name: str) -> np.ndarray:
        return predict(learner, trainable, learner.frozen(depth.params), parts[name])

    if trained is not None:
        held_out = trained.held_out_accuracy
    else:
        held_out = metrics.accuracy(parts["held_out"].labels_X, predicted("held_out"))
    labels_X, predicted_X = parts["test"].labels_X, predicted("test")
    return trained, {
        "accuracy": metrics.accuracy(labels_X, predicted_X),
        "macro_f1": metrics.macro_f1(labels_X, predicted_X, len(depth.task.template.words)),
        "held_out_accuracy": held_out,
        "steps": 0 if trained is None else len(trained.losses),
        "epochs": 0 if trained is None else trained.epochs,
        "best_epoch": 0 if trained is None else trained.best_epoch,
    }
