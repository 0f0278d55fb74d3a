"""Training one cell of the grid: epochs, early stopping, and the best state.

After every epoch the held-out examples are predicted. The state with the best accuracy on them is
the one that is tested, the earliest of equals; training ends when `patience` epochs brought nothing
better.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from chopjax import interrupts
from chopjax.classify.learner import Learner
from chopjax.classify.metrics import accuracy
from chopjax.classify.parts import Part, by_length, in_order
from chopjax.classify.settings import TrainSettings
from chopjax.errors import UserError
from chopjax.models.parameters import Params

IN_FLIGHT = 8  # steps that the device may have before the host waits


class Trained(NamedTuple):
    """trainable: of the best epoch, on the host. losses: nats, one a step, of all epochs."""

    trainable: Params
    losses: np.ndarray
    epochs: int
    best_epoch: int
    held_out_accuracy: float


def train(
    learner: Learner,
    params: Params,
    frozen: Any,
    training: Part,
    held_out: Part,
    settings: TrainSettings,
    seed: int,
    advance: Callable[[float, dict[str, Any]], None] = lambda epochs, values: None,
) -> Trained:
    """params: the decoder's. frozen: what the learner only reads. seed: of the order of examples
    and of what begins at random.

    advance: told how much of an epoch was done, and what to show. Raises UserError where the loss
    is no number.
    """
    state = learner.begin(params, jax.random.key(seed))
    share = 1 / (-(-len(training.labels_X) // settings.batch_size) + 1)
    best: Trained | None = None
    losses: list[np.ndarray] = []
    for epoch in range(1, settings.epochs + 1):
        of_epoch: list[jax.Array] = []
        for batch in in_order(training, settings.batch_size, (seed, epoch)):
            state, metrics = learner.step(state, frozen, batch)
            of_epoch.append(metrics["loss"])
            if len(of_epoch) % IN_FLIGHT == 0:
                of_epoch[-1].block_until_ready()
            advance(share, {})
        losses.append(np.array(jax.device_get(of_epoch), np.float32))
        if not np.isfinite(losses[-1]).all():
            raise UserError(
                f"the loss of epoch {epoch} is not a number; take a lower --learning-rate than "
                f"{learner.question.learning_rate:g}"
            )
        found = accuracy(held_out.labels_X, predict(learner, state["params"], frozen, held_out))
        if best is None or found > best.held_out_accuracy:
            # Copies: on processors the step takes the memory that others see.
            kept = jax.tree.map(np.array, state["params"])
            best = Trained(kept, losses[0], epoch, epoch, found)
        advance(share, {"loss": float(losses[-1].mean()), "held-out": found})
        if epoch - best.best_epoch >= settings.patience:
            break
    assert best is not None
    return best._replace(losses=np.concatenate(losses), epochs=len(losses))


def predict(learner: Learner, trainable: Params, frozen: Any, part: Part) -> np.ndarray:
    """The class of each example, in order."""
    predicted = np.zeros(len(part.labels_X), np.int32)
    for numbers, batch in by_length(part):
        interrupts.check()
        logits_BC = np.asarray(learner.logits(trainable, frozen, batch))
        predicted[numbers] = logits_BC[: len(numbers)].argmax(axis=1)
    return predicted
