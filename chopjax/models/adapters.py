"""Low-rank adapters: where they lie, where they begin, and the decoder with them.

The trainable part of such a run is a nested dict with the paths of the adapted kernels, and at each
`a` and `b`, float32, with the layer axis L first; the frozen part is the decoder's own parameters
under the key `base`, quantized or not. chop_tree cuts both like any parameters.

Axes: L layers, R rank, B batch; a kernel's inputs and outputs.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding

from chopjax.models import formats, parameters, quantized
from chopjax.models.adapted import Adapted
from chopjax.models.adapter_settings import AdapterSettings, axes, scale_of, shapes
from chopjax.models.borrowed import Borrowed
from chopjax.models.config import ModelConfig
from chopjax.models.mesh import partition
from chopjax.models.parameters import Params


def abstract(config: ModelConfig, settings: AdapterSettings, mesh: Mesh) -> Params:
    """Shapes and shardings of the adapters: as the kernels', the rank whole on every device."""
    size, dims = parameters.sizes(config) | {"R": settings.rank}, axes(config, settings)
    flat = {
        path: jax.ShapeDtypeStruct(
            shape,
            jnp.float32,
            sharding=NamedSharding(mesh, partition(dims[path], size, mesh.shape)),
        )
        for path, shape in shapes(config, settings).items()
    }
    nested: Params = unflatten_dict(flat, sep="/")
    return nested


def init(config: ModelConfig, settings: AdapterSettings, key: jax.Array) -> Params:
    """`b` at zero, so that nothing is added yet; `a` uniform in ±1/√inputs, which is what peft's
    Kaiming initialization with a=√5 comes to. Traceable."""
    kernels, size = parameters.kernels(config), parameters.sizes(config)
    flat = {}
    for index, (path, shape) in enumerate(shapes(config, settings).items()):
        if path.endswith("/b"):
            flat[path] = jnp.zeros(shape, jnp.float32)
            continue
        inputs = kernels[path.removesuffix("/a")].inputs
        edge = 1 / math.sqrt(math.prod(size[a] for a in inputs))
        own = jax.random.fold_in(key, index)
        flat[path] = jax.random.uniform(own, shape, jnp.float32, -edge, edge)
    nested: Params = unflatten_dict(flat, sep="/")
    return nested


def abstract_base(
    config: ModelConfig, settings: AdapterSettings, floats: Params, mesh: Mesh
) -> Params:
    """Shapes and shardings of what adapters stand on. floats: those of the parameters where none is
    quantized."""
    if settings.base == "float":
        return floats
    flat: dict[str, Any] = flatten_dict(floats, sep="/")
    for path, form in formats.forms(config, settings.base).items():
        flat[path] = quantized.abstract(config, path, form, mesh)
    nested: Params = unflatten_dict(flat, sep="/")
    return nested


def attach(
    base: Params,
    adapters: Params,
    settings: AdapterSettings,
    keys_B: jax.Array | None = None,
    masked: bool = False,
) -> Params:
    """The decoder's parameters with adapters in them. keys_B: a random key a row, for dropout;
    None: nothing is dropped. masked: nothing is added where a weight is zero."""
    flat = flatten_dict(base, sep="/")
    for path, node in _nodes(adapters, settings, keys_B, masked).items():
        flat[path] = node.replace(base=flat[path])
    nested: Params = unflatten_dict(flat, sep="/")
    return nested


def attach_to_rows(
    parent: Params,
    rows_L: jax.Array,
    adapters: Params,
    settings: AdapterSettings,
    keys_B: jax.Array | None = None,
    masked: bool = False,
) -> Params:
    """`attach` to a chop of `parent` that keeps these of its layers, without a copy of them."""
    nodes = _nodes(adapters, settings, keys_B, masked)
    own: dict[str, Any] = unflatten_dict(nodes, sep="/")
    return parent | {"blocks": Borrowed(rows_L, own.get("blocks", {}), parent["blocks"])}


def _nodes(
    adapters: Params, settings: AdapterSettings, keys_B: jax.Array | None, masked: bool
) -> dict[str, Adapted]:
    """Path → the adapted kernel, its base still missing."""
    added = flatten_dict(adapters, sep="/")
    nodes = {}
    for path in [path.removesuffix("/a") for path in added if path.endswith("/a")]:
        a, b = added[f"{path}/a"], added[f"{path}/b"]
        keys_LB = None
        if keys_B is not None and settings.dropout:
            place = list(parameters.KERNELS).index(path.rpartition("/")[2])
            numbers_L = jnp.arange(a.shape[0]) * len(parameters.KERNELS) + place
            each = jax.vmap(jax.random.fold_in, (0, None))
            keys_LB = jax.vmap(each, (None, 0))(keys_B, numbers_L)
        nodes[path] = Adapted(None, a, b, keys_LB, scale_of(settings), settings.dropout, masked)
    return nodes


def student(
    trainable: Params,
    frozen: dict[str, Any],
    batch: dict[str, jax.Array],
    settings: AdapterSettings,
    masked: bool = False,
) -> Params:
    """The parameters of the decoder that a run trains, whether it has adapters or not, and whether
    these stand on a base or on layers of the teacher. masked: adapters add nothing to zeros."""
    if settings.rank and "rows" in frozen:
        parent, rows_L = frozen["teacher"], frozen["rows"]
        return attach_to_rows(parent, rows_L, trainable, settings, batch.get("keys"), masked)
    if settings.rank:
        return attach(frozen["base"], trainable, settings, batch.get("keys"), masked)
    return trainable
