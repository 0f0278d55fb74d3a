"""`chopjax sparsify`: a checkpoint with zeros where weights are least missed.

The tensors stay dense: zeros take the room that numbers take, and the time. Nothing that runs these
checkpoints today is faster for the zeros in them.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chopjax import __version__
from chopjax.checkpoint.card import write_record
from chopjax.checkpoint.changed import write_changed
from chopjax.checkpoint.describe import of_checkpoint
from chopjax.checkpoint.identity import of_description
from chopjax.checkpoint.open import open_checkpoint
from chopjax.checkpoint.packed import say_decoded
from chopjax.checkpoint.provenance import SPARSITY, add_entry, check_provenance, record_of
from chopjax.checkpoint.source import Checkpoint
from chopjax.checkpoint.verify import check_tied
from chopjax.checkpoint.writer import MAX_SHARD_BYTES, Tensor
from chopjax.disk.atomic import check_free, new_folder
from chopjax.disk.files import expanded
from chopjax.models import parameters
from chopjax.progress import progress
from chopjax.sparsify.layer import Counts, read_counts
from chopjax.sparsify.matrices import check, check_method
from chopjax.sparsify.pattern import Pattern
from chopjax.sparsify.text import read_text
from chopjax.sparsify.walk import change_layers, losses_on
from chopjax.sparsify.ways import way_of
from chopjax.sparsify.work import finishes, held, layer_file, remove_finished, tensors_in

VERB = "sparsify"


@dataclasses.dataclass(frozen=True)
class SparsifySettings:
    """method: one of matrices.METHODS."""

    method: str
    pattern: Pattern
    sequences: int = 128  # the originals'
    sequence_length: int = 0  # tokens; 0: the context length, at most 2048
    seed: int = 0  # which documents


def sparsify(
    model: str,
    out: Path,
    settings: SparsifySettings,
    inputs: Sequence[str] = (),
    revision: str | None = None,
    field: str = "text",
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, Any]:
    """Write the pruned checkpoint and say what was done (`--json` has it).

    A run that was killed is taken up again from OUT.partial, where the model, the text and the
    settings are the same. Raises UserError, before anything is computed where that can be.
    """
    begun = time.monotonic()
    out = Path(os.path.abspath(expanded(out)))
    check_method(settings.method, bool(inputs))
    checkpoint = open_checkpoint(model, revision)
    check(checkpoint, settings.pattern)
    check_provenance(checkpoint)
    remove_finished(out, VERB)
    check_free(out, VERB, overwrite, protect=[checkpoint.folder])
    text = None
    if inputs:
        length = settings.sequence_length
        text = read_text(checkpoint, inputs, settings.sequences, length, settings.seed, field)
    say_decoded(checkpoint)
    checkpoint.fetch(checkpoint.tensors)
    check_tied(checkpoint)
    same = {
        "chopjax_version": __version__,
        "model": of_description(of_checkpoint(checkpoint)),
        "method": settings.method,
        "pattern": settings.pattern.name,
        "text": text and text.sha256,
    }
    with held(out, VERB, same, overwrite) as work:
        way = way_of(settings.method, settings.pattern)
        before = change_layers(checkpoint, way, text, work)
        counts = _counts(checkpoint, work)
        about: dict[str, Any] = {
            "method": settings.method,
            "pattern": settings.pattern.name,
            "zeros": sum(zeros for zeros, _ in counts.values()),
            "weights": sum(weights for _, weights in counts.values()),
        }
        if text is not None:
            about |= losses_on(text, checkpoint, way, work, "pruned")
            about |= text.record(inputs, settings.seed)
        _write(checkpoint, out, about, work, overwrite, max_shard_bytes)
    return {
        "model": model,
        "revision": checkpoint.revision,
        "decoded": checkpoint.decoded,
        "out": str(out),
        **about,
        "kinds": {
            kind: {"zeros": zeros, "weights": weights} for kind, (zeros, weights) in counts.items()
        },
        "parameters": parameters.count(checkpoint.config),
        "layers": checkpoint.config.num_layers,
        "layers_from_before": before,
        "seconds": round(time.monotonic() - begun, 1),
    }


def _counts(checkpoint: Checkpoint, work: Path) -> Counts:
    total = Counts()
    for layer in range(checkpoint.config.num_layers):
        for kind, (zeros, weights) in read_counts(layer_file(work, layer)).items():
            before = total.get(kind, [0, 0])
            total[kind] = [before[0] + zeros, before[1] + weights]
    return total


def _write(
    checkpoint: Checkpoint,
    out: Path,
    about: dict[str, Any],
    work: Path,
    overwrite: bool,
    max_shard_bytes: int,
) -> None:
    pruned = tensors_in(work, checkpoint.config.num_layers)
    record = add_entry(
        SPARSITY,
        record_of(checkpoint),
        checkpoint.name,
        checkpoint.revision,
        checkpoint.config.num_layers,
        about,
    )
    tensors = [
        Tensor(name, tensor.dtype, tensor.shape, pruned.get(name, tensor))
        for name, tensor in checkpoint.tensors.items()
    ]
    with new_folder(out, VERB, overwrite, protect=[checkpoint.folder, work]) as folder:
        with progress(f"write {out}", sum(tensor.nbytes for tensor in tensors), "B") as bar:
            write_changed(
                folder, checkpoint, checkpoint.raw_config, tensors, max_shard_bytes, bar.advance
            )
        write_record(folder, record)
        finishes(work, folder)
