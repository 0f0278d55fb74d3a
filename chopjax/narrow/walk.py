"""Layer by layer over the text: the units' scores, and the loss of a checkpoint.

On the device are one layer, with its gradient where that is asked for, and one batch; what enters
the layers waits in files of a folder that is not wanted after.

Axes: B batch, T time, D model, U units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from chopjax.checkpoint.source import Checkpoint
from chopjax.chop.calibration import CalibrationBatch, predicted_tokens
from chopjax.chop.prefixes import loss_sum
from chopjax.disk.atomic import check_room
from chopjax.models.parameters import Params
from chopjax.narrow.activation import observed, readers
from chopjax.narrow.gradient import first_order, pulled
from chopjax.narrow.units import units
from chopjax.progress import progress
from chopjax.sparsify import states
from chopjax.sparsify.layer import read_layer
from chopjax.sparsify.walk import COMPUTE, around_blocks, loss_at_end, on_device

Batches = Sequence[CalibrationBatch]
Kinds = tuple[str, ...]
Scores = dict[str, np.ndarray]  # kind → [U] float64, of one layer


def activation_scores(
    checkpoint: Checkpoint, batches: Batches, kinds: Kinds, folder: Path
) -> list[Scores]:
    """Of every layer: the root of what `observed` gives, summed over all sequences; of a group of
    heads the sum of its query heads', of a dimension that of the two norms'."""
    rows, num_layers = _rows(batches), checkpoint.config.num_layers
    _embed(checkpoint, rows, folder)
    found = []
    with progress("activations", num_layers * len(rows), "batches") as bar:
        for layer in range(num_layers):
            found.append(_observe(checkpoint, layer, rows, kinds, folder, bar.advance))
            _behind(folder, layer).unlink()
    return found


def _observe(
    checkpoint: Checkpoint,
    layer: int,
    rows: list[states.Rows],
    kinds: Kinds,
    folder: Path,
    done: Callable[[], None],
) -> Scores:
    """One layer's scores; the states behind it are written."""
    config = checkpoint.config.keep((layer,))
    blocks = on_device(read_layer(checkpoint, layer))
    squares: dict[str, np.ndarray] = {}

    def run(at: int, hidden_BTD: jax.Array) -> jax.Array:
        left_BTD, more = observed(blocks, rows[at].batch, hidden_BTD, config, COMPUTE, kinds)
        for name, values in more.items():
            squares[name] = squares.get(name, 0) + np.asarray(values, np.float64)
        done()
        made: jax.Array = left_BTD
        return made

    states.mapped(_behind(folder, layer + 1), _behind(folder, layer), rows, config, run)
    count, scores = units(config), Scores()
    for kind in kinds:
        roots = [np.sqrt(squares[name]) for name in readers(kind, config)]
        scores[kind] = sum(root.reshape(count[kind], -1).sum(axis=1) for root in roots)
    return scores


def gradient_scores(
    checkpoint: Checkpoint, batches: Batches, kinds: Kinds, folder: Path
) -> list[Scores]:
    """Of every layer: `first_order` of the gradient of the mean loss over all of the text's tokens.

    Down through the layers, then up: what enters each of them stays in a file until then.
    """
    rows, num_layers = _rows(batches), checkpoint.config.num_layers
    # What enters the layers and leaves the last, and two files of gradients.
    check_room(folder, (num_layers + 3) * states.file_bytes(rows, checkpoint.config))
    found = []
    with progress("gradients", 2 * num_layers * len(rows), "batches") as bar:
        _advance(checkpoint, rows, folder, bar.advance, keep=True)
        _differentiate_loss(checkpoint, rows, folder)
        for layer in reversed(range(num_layers)):
            _behind(folder, layer + 1).unlink()
            found.append(_differentiate(checkpoint, layer, rows, kinds, folder, bar.advance))
            _gradient(folder, layer + 1).unlink()
    return found[::-1]


def _differentiate_loss(checkpoint: Checkpoint, rows: list[states.Rows], folder: Path) -> None:
    """Write the gradient of what leaves the last layer."""
    params, config = around_blocks(checkpoint), checkpoint.config.keep(())
    tokens = predicted_tokens([row.batch for row in rows])
    last = checkpoint.config.num_layers

    def run(at: int, end_BTD: jax.Array) -> jax.Array:
        batch = rows[at].batch
        d_BTD: jax.Array = jax.grad(loss_sum, 1)(params, end_BTD, batch, config, COMPUTE) / tokens
        return d_BTD

    states.mapped(_gradient(folder, last), _behind(folder, last), rows, config, run)


def _differentiate(
    checkpoint: Checkpoint,
    layer: int,
    rows: list[states.Rows],
    kinds: Kinds,
    folder: Path,
    done: Callable[[], None],
) -> Scores:
    """One layer's scores; the gradient of what enters it is written."""
    config = checkpoint.config.keep((layer,))
    # A gradient has its weight's type, and sums of products want more than two bytes.
    blocks = jax.tree.map(lambda x: x.astype(jnp.float32), on_device(read_layer(checkpoint, layer)))
    entering_RBTD = np.load(_behind(folder, layer), mmap_mode="r")
    total: Params = {}

    def run(at: int, d_BTD: jax.Array) -> jax.Array:
        nonlocal total
        x_BTD = jnp.asarray(entering_RBTD[at])
        d_BTD, gradients = pulled(blocks, rows[at].batch, x_BTD, d_BTD, config, COMPUTE)
        total = jax.tree.map(jnp.add, total, gradients) if total else gradients
        done()
        return d_BTD

    states.mapped(_gradient(folder, layer), _gradient(folder, layer + 1), rows, config, run)
    scores = first_order(blocks, total, config, kinds)
    return {kind: np.asarray(scores[kind], np.float64) for kind in kinds}


METHODS: dict[str, Callable[[Checkpoint, Batches, Kinds, Path], list[Scores]]] = {
    "activation": activation_scores,
    "gradient": gradient_scores,
}


def unit_scores(
    checkpoint: Checkpoint, method: str, batches: Batches, kinds: Kinds, folder: Path
) -> list[Scores]:
    """Of every layer; of `embed`, which all layers share, the sum over them."""
    found = METHODS[method](checkpoint, batches, kinds, folder)
    if "embed" not in kinds:
        return found
    everywhere = np.sum([scores["embed"] for scores in found], axis=0)
    return [scores | {"embed": everywhere} for scores in found]


def loss(checkpoint: Checkpoint, batches: Batches, folder: Path, label: str) -> float:
    """Nats per predicted token."""
    rows, num_layers = _rows(batches), checkpoint.config.num_layers
    with progress(f"loss of {label}", num_layers * len(rows), "batches") as bar:
        _advance(checkpoint, rows, folder, bar.advance)
        return loss_at_end(checkpoint, _behind(folder, num_layers), rows, states.CALIBRATION)


def _advance(
    checkpoint: Checkpoint,
    rows: list[states.Rows],
    folder: Path,
    done: Callable[[], None],
    keep: bool = False,
) -> None:
    """Write what leaves the last layer. keep: what enters the layers stays, too."""
    _embed(checkpoint, rows, folder)
    for layer in range(checkpoint.config.num_layers):
        blocks, config = on_device(read_layer(checkpoint, layer)), checkpoint.config.keep((layer,))
        after, before = _behind(folder, layer + 1), _behind(folder, layer)
        states.advanced(after, before, rows, blocks, blocks, config, COMPUTE, done)
        if not keep:
            before.unlink()


def _embed(checkpoint: Checkpoint, rows: list[states.Rows], folder: Path) -> None:
    config = checkpoint.config.keep(())
    states.embedded(_behind(folder, 0), rows, around_blocks(checkpoint), config, COMPUTE)


def _rows(batches: Batches) -> list[states.Rows]:
    return [states.Rows(states.CALIBRATION, batch) for batch in batches]


def _behind(folder: Path, layers: int) -> Path:
    """The states behind so many layers."""
    return folder / f"states-{layers}.npy"


def _gradient(folder: Path, layers: int) -> Path:
    """The gradients of these."""
    return folder / f"gradients-{layers}.npy"
