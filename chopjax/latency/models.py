"""The models of a latency table: checkpoints, chops of one, or random weights of a shape."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from chopjax.checkpoint.computed import translate
from chopjax.checkpoint.describe import local_config
from chopjax.checkpoint.load import describe, load
from chopjax.checkpoint.orbax_folder import Unread
from chopjax.checkpoint.unread import bring
from chopjax.chop.configurations import resolve_remove
from chopjax.errors import UserError
from chopjax.generate.draft import FoundDraft
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import init
from chopjax.models.formats import Kind
from chopjax.models.mesh import make_mesh
from chopjax.models.parameters import Params
from chopjax.models.quantized import places
from chopjax.score.drafting import Draft, of_layers, of_model
from chopjax.score.engine import Engine
from chopjax.score.model import where_quantized

Model = tuple[Params, ModelConfig]


def open_models(
    names: Sequence[str],
    revision: str | None,
    dtype: str,
    random: bool,
    remove: str | None,
    weights: Kind | None = None,
) -> dict[str, Model]:
    """Name → model, the parent first: the models named, or one and its chops.

    random: weights drawn, of the shapes that config.json says. remove: see kept_layers. weights:
    the format that the blocks' matrices are quantized to.
    """
    if len(set(names)) < len(names):
        raise UserError(f"the same model twice: {' '.join(names)}")
    if len(names) > 1:
        if remove is not None:
            raise UserError("--remove is for one MODEL; several are measured as they are")
        return {name: open_model(name, revision, dtype, random, weights) for name in names}
    kept = kept_layers(remove, _config(names[0], revision, random).num_layers)
    params, config = open_model(names[0], revision, dtype, random, weights)
    models = {"parent": (params, config)}
    for count in kept:
        name = f"{count} of {config.num_layers} layers"
        models[name] = first_layers(params, config, count)
    return models


def open_model(
    name: str, revision: str | None, dtype: str, random: bool, weights: Kind | None = None
) -> Model:
    """A model by name, or random weights of its shapes."""
    one = make_mesh(devices=jax.local_devices()[:1])
    if not random:
        description = describe(name, revision, quantized=True)
        where = where_quantized(description, weights, one)
        return load(description, dtype=dtype, shardings=where).params, description.config
    config = _config(name, revision, random)
    params: Params = jax.jit(lambda key: init(config, key, dtype))(jax.random.key(0))
    if weights is not None:
        drawn = jax.tree.map(lambda w: Unread(w.shape, w.dtype, lambda: np.asarray(w)), params)
        params = bring(drawn, flatten_dict(places(config, weights, one), sep="/"), None)
    return params, config


def open_draft(found: FoundDraft, engine: Engine, dtype: str, weights: Kind | None) -> Draft:
    """A draft beside the model of an engine, on its one device."""
    if found.model is None:
        return of_layers(engine, found.keep)
    params, config = open_model(found.model.name, None, dtype, False, weights)
    return of_model(engine, Engine(config, params, engine.compute, budget=engine.budget))


def _config(name: str, revision: str | None, random: bool) -> ModelConfig:
    """What a model computes; for random weights its config.json is enough."""
    if random and (raw_config := local_config(name)) is not None:
        return translate(raw_config)[1]
    return describe(name, revision, quantized=True).config


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
