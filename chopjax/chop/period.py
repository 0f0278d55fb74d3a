"""Layers whose kinds repeat, five local ones and a global one say, and cuts that keep the rhythm.

A chop writes out which kept layer is of which kind wherever config.json can say so. Some runtimes
(llama.cpp, older transformers) derive it from the index alone: for those a cut must remove whole
periods, so that the layer at every place is of the kind that the place had before. No jax.
"""

from __future__ import annotations

from chopjax.checkpoint.source import Files
from chopjax.checkpoint.structure import kinds, off_rhythm, period
from chopjax.chop.configurations import STRATEGIES, resolve_remove
from chopjax.errors import UserError
from chopjax.keep import Keep, ranges

ANY, WHOLE = "any", "whole"
CHOICES = (ANY, WHOLE)


def period_of(files: Files) -> int:
    """Raises UserError where the layers have no period."""
    found = period(files.structure, files.raw_config, files.num_layers)
    if found is None:
        alike = len(set(kinds(files.structure, files.raw_config, files.num_layers))) < 2
        reason = "all its layers are of one kind" if alike else "its layers' kinds do not repeat"
        raise UserError(
            f"--period {WHOLE}: {files.name} (model_type {files.structure.model_type}) has no "
            f"period: {reason}. Leave --period out"
        )
    return found


def whole_periods(files: Files, strategy: str, remove: str) -> Keep:
    """The keep list of a strategy by name, applied to periods instead of layers.

    Layers behind the last whole period stay where they are, at the end.
    """
    length = period_of(files)
    count = resolve_remove(remove, files.num_layers)
    if count % length:
        below, above = count - count % length, count - count % length + length
        near = [n for n in (below, above) if 0 < n < files.num_layers]
        raise UserError(
            f"--period {WHOLE}: {count} layers are no whole number of periods of {length}; "
            f"--remove {' or '.join(map(str, near)) or 'fewer'} would be"
        )
    periods = files.num_layers // length
    try:
        kept = STRATEGIES[strategy](periods, count // length)
    except UserError:
        raise UserError(
            f"--period {WHOLE}: {files.name} has {periods} whole periods of {length} layers, of "
            f"which --strategy {strategy} cannot remove {count // length}"
        ) from None
    tail = range(periods * length, files.num_layers)
    return (*(place * length + i for place in kept for i in range(length)), *tail)


def check_whole(files: Files, keep: Keep) -> None:
    """Raise UserError for a keep list that gives a place another kind than it had."""
    length = period_of(files)
    of = kinds(files.structure, files.raw_config, files.num_layers)
    wrong = [layer for place, layer in enumerate(keep) if of[layer] != of[place]]
    if wrong:
        raise UserError(
            f"--period {WHOLE}: with layers {ranges(keep)} kept, layer {wrong[0]} comes to a place "
            f"of another kind. The kinds of layers repeat after {length}: remove layers in runs of "
            f"{length}, or {length * 2} and so on"
        )


def rhythm_notes(files: Files, keep: Keep, chopped: dict[str, object]) -> list[str]:
    """What to say of a cut that some runtimes would read wrongly; nothing of others.

    chopped: config.json of the kept layers.
    """
    lists = off_rhythm(files.structure, chopped, len(keep))
    if not lists or off_rhythm(files.structure, files.raw_config, files.num_layers):
        return []
    length = period(files.structure, files.raw_config, files.num_layers)
    way_out = f"; --period {WHOLE} removes whole periods of {length} layers" if length else ""
    note = (
        "the kinds of the kept layers are no longer in the rhythm of the family. config.json "
        f"spells them out ({', '.join(lists)}), but llama.cpp and others derive them from a "
        f"layer's index{way_out}"
    )
    return [note]
