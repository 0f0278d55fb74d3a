"""Looking at the weights themselves: NaN, infinity, tied tables that differ.

The model is never held. jax is imported for chopjax's own folders alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import numpy as np
from flax.traverse_util import flatten_dict

from chopjax.checkpoint import values
from chopjax.checkpoint.describe import Description
from chopjax.checkpoint.source import Checkpoint
from chopjax.errors import UserError, listing
from chopjax.progress import progress, say


def check(description: Description) -> list[str]:
    """Names of the tensors, or parameters in a folder of chopjax's own, with NaN or infinity."""
    arrays: dict[str, Callable[[], np.ndarray]]
    if isinstance(description.weights, Checkpoint):
        checkpoint = description.weights
        names = [binding.source for binding in checkpoint.match.bindings]
        checkpoint.fetch(names)
        check_tied(checkpoint)
        arrays = {name: functools.partial(checkpoint.array, name) for name in names}
    else:
        from chopjax.checkpoint.unread import unread

        params = flatten_dict(unread(description.weights, description.config), sep="/")
        arrays = {name: leaf.read for name, leaf in params.items()}
    with progress(f"read {description.name}", len(arrays), "arrays") as bar:
        faults = []
        for name, read in arrays.items():
            if not values.is_finite(read()):
                faults.append(name)
            bar.advance()
    return faults


def report_not_finite(name: str, tensors: Iterable[str], strict: bool) -> None:
    """Name the tensors that hold NaN or infinity, as a warning or as an error."""
    message = f"{name}: NaN or infinity in\n{listing(sorted(tensors))}"
    if strict:
        raise UserError(f"{message}\nThe checkpoint is damaged, or its training had diverged.")
    say(f"warning: {message}")


def check_tied(checkpoint: Checkpoint) -> None:
    """Tensors that config.json says are one must hold the same bytes."""
    for name, other in checkpoint.match.duplicates:
        if not values.same_bytes(checkpoint.array(name), checkpoint.array(other)):
            raise UserError(
                f"{checkpoint.name}: config.json says that {name} and {other} are tied, but they "
                "differ; set tie_word_embeddings to false in config.json if both are meant"
            )
