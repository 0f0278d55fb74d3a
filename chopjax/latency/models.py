"""The models of a latency table: checkpoints, chops of one, or random weights of a shape."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from chopjax.checkpoint.computed import translate
from chopjax.checkpoint.describe import local_config
from chopjax.checkpoint.load import describe, load
from chopjax.chop.configurations import resolve_remove
from chopjax.errors import UserError
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import init
from chopjax.models.parameters import Params

Model = tuple[Params, ModelConfig]


def open_models(
    names: Sequence[str], revision: str | None, dtype: str, random: bool, remove: str | None
) -> dict[str, Model]:
    """Name → model, the parent first: the models named, or one and its chops.

    random: weights drawn, of the shapes that config.json says. remove: see kept_layers.
    """
    if len(set(names)) < len(names):
        raise UserError(f"the same model twice: {' '.join(names)}")
    if len(names) > 1:
        if remove is not None:
            raise UserError("--remove is for one MODEL; several are measured as they are")
        return {name: open_model(name, revision, dtype, random) for name in names}
    kept = kept_layers(remove, _config(names[0], revision, random).num_layers)
    params, config = open_model(names[0], revision, dtype, random)
    models = {"parent": (params, config)}
    for count in kept:
        name = f"{count} of {config.num_layers} layers"
        models[name] = first_layers(params, config, count)
    return models


def open_model(name: str, revision: str | None, dtype: str, random: bool) -> Model:
    """A model by name, or random weights of its shapes."""
    if random:
        config = _config(name, revision, random)
        return jax.jit(lambda key: init(config, key, dtype))(jax.random.key(0)), config
    loaded = load(name, revision, dtype=dtype)
    return loaded.params, loaded.config


def _config(name: str, revision: str | None, random: bool) -> ModelConfig:
    """What a model computes; for random weights its config.json is enough."""
    if random and (raw_config := local_config(name)) is not None:
        return translate(raw_config)[1]
    return describe(name, revision).config


def first_layers(params: Params, config: ModelConfig, count: int) -> Model:
    """A model of as many layers; which ones makes no difference to time (of one kind).

    With 0, embedding, final norm and head are left: their time is what no chop takes away.
    """
    blocks = jax.tree.map(lambda array: array[:count], params["blocks"])
    return {**params, "blocks": blocks}, config.keep(range(count))


def kept_layers(remove: str | None, num_layers: int) -> list[int]:
    """Layers that the chops keep, most first. remove: counts, fractions or percentages; a quarter,
    a half and three quarters by default, "0" for no chop."""
    if remove is None:
        shares = {round(num_layers * share) for share in (0.25, 0.5, 0.75)} - {0, num_layers}
        return sorted((num_layers - gone for gone in shares), reverse=True)
    if remove.strip() == "0":
        return []
    removed = {resolve_remove(part, num_layers) for part in remove.split(",")}
    return sorted((num_layers - gone for gone in removed), reverse=True)
