"""What adapters stand on: read at every start of a run, never trained, never saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from chopjax.checkpoint.describe import Description, describe, step_of
from chopjax.checkpoint.identity import changes, of_description
from chopjax.checkpoint.load import load
from chopjax.disk.files import expanded
from chopjax.errors import UserError, listing
from chopjax.keep import Keep, ranges
from chopjax.models.parameters import Params
from chopjax.progress import say
from chopjax.train.settings import Settings
from chopjax.train.step import shardings_of


def base_record(settings: Settings, description: Description) -> dict[str, Any]:
    """For run.json: where the base is, and what tells it apart. Of a model of the hub the weights
    are known once they have been read.

    step: which checkpoint, where the base is a training run itself.
    """
    local = expanded(settings.model)
    return {
        "model": str(local.absolute()) if local.is_dir() else settings.model,
        "revision": description.revision,
        "step": step_of(description),
        "fingerprint": of_description(description),
    }


def find_base(settings: Settings, record: Mapping[str, Any]) -> Description:
    """The base of a run that is resumed: the commit or the checkpoint that it began with, even
    where the branch has moved or that run has gone on.

    record: run.json. Raises UserError where it is not the same model.
    """
    about = record["base"]
    same = settings.model == record["config"]["model"]
    step = about.get("step") if same else None
    if same and not expanded(settings.model).is_dir():  # of the hub, or seen from another folder
        description = describe(about["model"], about["revision"], step)
    else:
        description = describe(settings.model, settings.revision or None, step)
    if changed := changes(about["fingerprint"], of_description(description)):
        raise UserError(
            f"model {description.name}: not what this run's adapters were trained on so far; these "
            f"differ:\n{listing(changed)}\nPut that model back, or begin anew in another --workdir."
        )
    return description


def read_base(
    settings: Settings,
    description: Description | None,
    keep: Keep | None,
    abstract: Params,
    params: Params | None,
) -> Params:
    """The base's parameters, quantized while they are read where the settings say so.

    keep: its layers that stay; None: all. abstract: shapes and shardings. params: what would be
    read, in memory already; only what is not quantized is taken from there, as codes are those of
    the file's own numbers.
    """
    where, dtype = shardings_of(abstract), settings.compute.param_dtype
    if params is not None and settings.adapter.base == "float":
        placed: Params = jax.tree.map(
            lambda leaf, place: jax.device_put(leaf.astype(dtype), place), params, where
        )
        return placed
    assert description is not None
    which = "all layers" if keep is None else f"layers {ranges(keep)}"
    kind = "" if settings.adapter.base == "float" else f", in {settings.adapter.base}"
    say(f"loading {which} of {description.name}, under adapters{kind}")
    return load(description, keep=keep, shardings=where, dtype=dtype).params
