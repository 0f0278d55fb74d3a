"""What adapters stand on: read at every start of a run, never trained, never saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from chopjax.checkpoint.describe import Description
from chopjax.checkpoint.identity import differences
from chopjax.checkpoint.load import load
from chopjax.checkpoint.unread import base_fingerprint, bring, in_memory
from chopjax.disk.files import expanded
from chopjax.errors import UserError, listing
from chopjax.keep import Keep, ranges
from chopjax.models.parameters import Params
from chopjax.progress import say
from chopjax.train.settings import Settings
from chopjax.train.step import shardings_of


def base_record(settings: Settings, description: Description | None) -> dict[str, Any]:
    """For run.json: where the base is, and what tells it apart."""
    assert description is not None
    local = expanded(settings.model)
    return {
        "model": str(local.absolute()) if local.is_dir() else settings.model,
        "revision": description.revision,
        "fingerprint": base_fingerprint(description.weights, description.raw_config),
    }


def check_base(description: Description, record: Mapping[str, Any]) -> None:
    """Raises UserError where this is not the model that the run began with."""
    now = base_fingerprint(description.weights, description.raw_config)
    if changed := differences(record["fingerprint"], now):
        raise UserError(
            f"model {description.name}: not what this run's adapters were trained on so far; these "
            f"differ:\n{listing(changed)}\nPut that model back, or begin anew in another --workdir."
        )


def read_base(
    settings: Settings,
    description: Description | None,
    keep: Keep | None,
    abstract: Params,
    params: Params | None,
) -> Params:
    """The base's parameters, quantized while they are read where the settings say so.

    keep: its layers that stay; None: all. abstract: shapes and shardings. params: what would be
    read, in memory already.
    """
    where = shardings_of(abstract)
    if params is not None:
        return bring(in_memory(params), flatten_dict(where, sep="/"), settings.compute.param_dtype)
    assert description is not None
    which = "all layers" if keep is None else f"layers {ranges(keep)}"
    kind = "" if settings.adapter.base == "float" else f", in {settings.adapter.base}"
    say(f"loading {which} of {description.name}, under adapters{kind}")
    return load(description, keep=keep, shardings=where, dtype=settings.compute.param_dtype).params
