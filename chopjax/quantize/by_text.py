"""`chopjax quantize --method gptq`: layer by layer, by what the matrices read on a text.

As sparsify does it (sparsify/walk.py): what a layer reads comes from layers that are quantized
already, memory holds one of them, and a run that was killed goes on from OUT.partial.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chopjax import __version__
from chopjax.checkpoint.describe import of_checkpoint
from chopjax.checkpoint.identity import of_description
from chopjax.checkpoint.verify import check_tied
from chopjax.checkpoint.writer import MAX_SHARD_BYTES
from chopjax.models.formats import Kind
from chopjax.quantize.gptq import way_of
from chopjax.quantize.quantize import VERB, begin, finish, record
from chopjax.sparsify.text import read_text
from chopjax.sparsify.walk import change_layers, losses_on
from chopjax.sparsify.work import held, tensors_in

METHOD = "gptq"


def quantize_by_text(
    model: str,
    out: Path,
    kind: Kind,
    inputs: Sequence[str],
    group: int | None = None,
    sequences: int = 128,
    sequence_length: int = 0,
    revision: str | None = None,
    field: str = "text",
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the checkpoint and say what was done (`--json` has it).

    inputs, sequences, sequence_length, field, seed: see sparsify/text.py. The rest is as in
    `quantize_checkpoint`.
    """
    begun = time.monotonic()
    job = begin(model, out, kind, group, revision, overwrite)
    checkpoint = job.checkpoint
    text = read_text(checkpoint, inputs, sequences, sequence_length, seed, field)
    checkpoint.fetch(checkpoint.tensors)
    check_tied(checkpoint)
    same = {
        "chopjax_version": __version__,
        "model": of_description(of_checkpoint(checkpoint)),
        "weights": kind,
        "group": job.block,
        "text": text.sha256,
    }
    way = way_of(kind, job.block)
    with held(job.out, VERB, same, overwrite) as work:
        before = change_layers(checkpoint, way, text, work)
        about = record(job, METHOD) | losses_on(text, checkpoint, way, work, "quantized")
        about |= text.record(inputs, seed)
        changed = tensors_in(work, checkpoint.config.num_layers)
        done = finish(job, about, changed, overwrite, max_shard_bytes, work)
    seconds = round(time.monotonic() - begun, 1)
    return {"model": model, **done, "layers_from_before": before, "seconds": seconds}
