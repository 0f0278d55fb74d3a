"""One depth of a grid: its parameters, what is made once for all of its cells, and a cell's run."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from chopjax.classify import metrics
from chopjax.classify.features import Reader, make_reader, read_features
from chopjax.classify.learner import Learner, Question, adapter_of, make_learner
from chopjax.classify.parts import FeaturePart, Part, Shown, shown, token_part
from chopjax.classify.settings import Cell
from chopjax.classify.task import PARTS, Task
from chopjax.classify.training import Trained, predict, train
from chopjax.classify.ways import trains
from chopjax.keep import Keep
from chopjax.models.parameters import Params
from chopjax.progress import Bar


class Depth:
    """A number of layers: its parameters, and what is made once for all of its cells."""

    def __init__(self, task: Task, keep: Keep, params: Params):
        self.task, self.keep, self.params = task, keep, params
        self.config = task.description.config.keep(keep)
        self._learners: dict[Question, Learner] = {}
        self._features: dict[int, dict[str, FeaturePart]] = {}
        self._reader: Reader | None = None

    def question(self, cell: Cell) -> Question:
        settings, task = self.task.settings, self.task
        return Question(
            cell.method,
            cell.head,
            task.label_ids,
            settings.rate_of(cell.method),
            task.compute,
            adapter_of(cell.method, settings.rank, settings.targets),
        )

    def learner(self, cell: Cell) -> Learner:
        question = self.question(cell)
        if question not in self._learners:
            self._learners[question] = make_learner(
                self.config, question, self.task.slots, self.task.mesh
            )
        return self._learners[question]

    def before(self, seed: int) -> Shown:
        """What all prompts of a seed begin with."""
        material = self.task.materials[seed]
        return shown(material.train, material.shared, self.task.slots)

    def frozen(self, cell: Cell) -> Any:
        """What the cell's learner only reads."""
        return self.learner(cell).frozen(self.params, self.before(cell.seed))

    def parts(self, cell: Cell, bar: Counted) -> dict[str, Part]:
        """Training, held-out and test examples of a cell's seed."""
        material = self.task.materials[cell.seed]
        prompts = {name: getattr(material, name) for name in PARTS}
        if cell.method != "none":
            return {
                name: token_part(each, self.task.tails, skip=material.shared)
                for name, each in prompts.items()
            }
        if cell.seed not in self._features:
            if self._reader is None:
                self._reader = make_reader(self.config, self.task.compute)
            self._features[cell.seed] = read_features(
                self._reader,
                self.params,
                prompts,
                self.before(cell.seed),
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


def run_cell(depth: Depth, cell: Cell, counted: Counted) -> tuple[Trained | None, dict[str, Any]]:
    """Train a cell, if anything is trained, and test its best state."""
    settings, learner = depth.task.settings.training, depth.learner(cell)
    parts, frozen = depth.parts(cell, counted), depth.frozen(cell)
    trained: Trained | None = None
    if trains(cell.method, cell.head):
        epochs = settings.epochs
        trained = train(
            learner,
            depth.params,
            frozen,
            parts["train"],
            parts["held_out"],
            settings,
            cell.seed,
            lambda part, values: counted.advance(part / (epochs + 1), values),
        )
    trainable = {} if trained is None else jax.device_put(trained.trainable)

    def predicted(name: str) -> np.ndarray:
        return predict(learner, trainable, frozen, parts[name])

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
