"""Layer by layer, as Wanda and SparseGPT go: what a layer reads comes from layers that are pruned
already; all of its matrices are pruned by one pass over the text, and then it runs again.

On the device are one layer, what its matrices read summed up, and one batch; on the host the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from chopjax.checkpoint.leaves import unread_checkpoint
from chopjax.checkpoint.source import Checkpoint
from chopjax.chop.calibration import predicted_tokens
from chopjax.chop.prefixes import loss_sum
from chopjax.models.compute import Compute
from chopjax.models.parameters import Params
from chopjax.progress import progress
from chopjax.sparsify import states
from chopjax.sparsify.inputs import Sums, input_sums
from chopjax.sparsify.layer import change_layer, read_layer, write_layer
from chopjax.sparsify.matrices import Layer, matrices_of
from chopjax.sparsify.text import Text
from chopjax.sparsify.ways import Way
from chopjax.sparsify.work import layer_file, layers_done, states_file

COMPUTE = Compute()  # float32


def change_layers(checkpoint: Checkpoint, way: Way, text: Text | None, work: Path) -> int:
    """Change all layers that are not changed yet, each into a file of the work folder. Returns how
    many were. text: None for a way that needs none, and then no loss is measured."""
    num_layers = checkpoint.config.num_layers
    rows = states.rows_of(text, way.looks != "nothing") if text else []
    begin = layers_done(work, num_layers, bool(rows))
    if rows and not states_file(work, begin).is_file():
        config = checkpoint.config.keep(())
        states.embedded(states_file(work, 0), rows, around_blocks(checkpoint), config, COMPUTE)
    with progress(way.name, num_layers, "layers", begin) as bar:
        for layer in range(begin, num_layers):
            # Batches that are looked at, matrices, and batches that run again.
            looked_at = sum(row.kind == states.CALIBRATION for row in rows)
            pieces = looked_at + len(matrices_of(checkpoint, layer)) + len(rows)
            done = functools.partial(bar.advance, 1 / pieces)
            tokens = text.tokens if text else 0
            _change_one(checkpoint, layer, way, rows, tokens, work, done)
            bar.update(layer + 1)
    return begin


def _change_one(
    checkpoint: Checkpoint,
    layer: int,
    way: Way,
    rows: list[states.Rows],
    tokens: int,
    work: Path,
    done: Callable[[], None],
) -> None:
    config = checkpoint.config.keep((layer,))
    parents, before = read_layer(checkpoint, layer), states_file(work, layer)
    blocks = on_device(parents) if rows else {}
    sums: Sums = {}
    if way.looks != "nothing":
        looked_at = _counted(states.read(before, rows, states.CALIBRATION), done)
        sums = input_sums(blocks, config, COMPUTE, looked_at, way.looks == "products")
    changed, tensors, counts = change_layer(checkpoint, layer, parents, way, sums, tokens, done)
    write_layer(layer_file(work, layer), tensors, counts)
    if not rows:
        return
    after = states_file(work, layer + 1)
    both = on_device(changed), blocks
    states.advanced(after, before, rows, *both, config, COMPUTE, done)
    before.unlink()


def losses_on(
    text: Text, checkpoint: Checkpoint, way: Way, work: Path, name: str
) -> dict[str, dict[str, float]]:
    """`loss` of the parent and of the changed model, which goes by this name, on the text that is
    held back, in nats per predicted token."""
    rows = states.rows_of(text, way.looks != "nothing")
    path = states_file(work, checkpoint.config.num_layers)
    kinds = {"parent": states.PARENT, name: states.HELD_OUT}
    with progress("loss on other text"):
        losses = {n: loss_at_end(checkpoint, path, rows, kind) for n, kind in kinds.items()}
    return {"loss": losses}


def loss_at_end(checkpoint: Checkpoint, path: Path, rows: list[states.Rows], kind: str) -> float:
    """Of the rows of a kind, in nats per predicted token, from the states behind the last layer."""
    params, config = around_blocks(checkpoint), checkpoint.config.keep(())
    ends = states.read(path, rows, kind)
    sums = [loss_sum(params, end_BTD, batch, config, COMPUTE) for batch, end_BTD in ends]
    batches = [row.batch for row in rows if row.kind == kind]
    return float(sum(map(float, sums)) / predicted_tokens(batches))


def _counted(items: Iterator[Any], done: Callable[[], None]) -> Iterator[Any]:
    for item in items:
        yield item
        done()


def on_device(layer: Layer) -> Params:
    """On the device, as the decoder wants them."""
    blocks: Params = unflatten_dict(jax.device_put(dict(layer)), sep="/")["blocks"]
    return blocks


def around_blocks(checkpoint: Checkpoint) -> Params:
    """Embeddings, last norm and head, for a decoder without layers."""
    unread = flatten_dict(unread_checkpoint(checkpoint, (0,)), sep="/")
    outside = {path: leaf.read() for path, leaf in unread.items() if not path.startswith("blocks/")}
    params: Params = unflatten_dict(jax.device_put(outside), sep="/")
    return params | {"blocks": {}}
