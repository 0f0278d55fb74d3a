"""The parameters of any model, a matrix at a time: what export, checks and adapters read.

Of a training run with adapters, the merged ones: W + scale·A·B in float32 (where W is not zero, if
the run's masks are fixed), on the weights that it was trained against, which of a quantized base
are those that its codes stand for; or on the base's own ("original"), which is another model. What
compute.param_dtype rounded of a base in floats is not rounded here: all that has no adapter stays
byte for byte the base's.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from chopjax.checkpoint import values
from chopjax.checkpoint.describe import AdapterRun
from chopjax.checkpoint.identity import changes, of_description
from chopjax.checkpoint.leaves import unread_checkpoint
from chopjax.checkpoint.load_quantized import read_quantized
from chopjax.checkpoint.orbax_folder import Unread, unread_params
from chopjax.checkpoint.source import Checkpoint
from chopjax.errors import UserError, listing
from chopjax.keep import Keep
from chopjax.models import adapter_settings, formats, parameters
from chopjax.models.config import ModelConfig
from chopjax.models.formats import Form
from chopjax.models.parameters import Params
from chopjax.models.quantized import Quantized

Onto = Literal["trained", "original"]


def unread(
    weights: Checkpoint | Path | AdapterRun,
    config: ModelConfig,
    keep: Keep | None = None,
    onto: Onto = "trained",
) -> Params:
    """The parameters of a description's weights as Unread ones.

    config: of all the layers that the weights have. keep: the layers that are wanted.
    """
    if isinstance(weights, Checkpoint):
        return unread_checkpoint(weights, keep)
    if isinstance(weights, AdapterRun):
        return _merged(weights, config, keep, onto)
    nested: Params = unread_params(weights, parameters.shapes(config))
    return nested if keep is None else _kept(nested, keep)


def bring(params: Params, where: Mapping[str, Any], dtype: Any) -> Params:
    """Unread parameters onto devices, one at a time.

    where: path → Sharding, or Quantized of Shardings for a kernel to be quantized. dtype: of those
    that are not; None: as they are.
    """
    made: dict[str, Any] = {}
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        for path, leaf in flatten_dict(params, sep="/").items():
            place = where[path]
            if isinstance(place, Quantized):
                stacked = len(leaf.shape) - len(place.form.inputs) - len(place.form.outputs)
                read = leaf.read_one or leaf.read().__getitem__
                made[path] = read_quantized(read, leaf.shape[:stacked], place, thread)
                continue
            array = leaf.read()
            array = array if dtype is None else array.astype(dtype)
            made[path] = jax.make_array_from_callback(
                array.shape, place, array.__getitem__
            ).block_until_ready()
    nested: Params = unflatten_dict(made, sep="/")
    return nested


def check_base(run: AdapterRun) -> None:
    """Raises UserError where the base is not the model that the run read."""
    if changed := changes(run.fingerprint, of_description(run.base)):
        raise UserError(
            f"{run.base.name}: not what the adapters in {run.path} were trained on; these differ:\n"
            f"{listing(changed)}\nPut the model back that the run was started with."
        )


def _kept(params: Params, keep: Keep) -> Params:
    """Of parameters whose layers are in one piece, these layers."""

    def cut(leaf: Unread) -> Unread:
        return dataclasses.replace(
            leaf, shape=(len(keep), *leaf.shape[1:]), read=lambda: leaf.read()[np.array(keep)]
        )

    return params | {"blocks": jax.tree.map(cut, params["blocks"])}


def _merged(run: AdapterRun, config: ModelConfig, keep: Keep | None, onto: Onto) -> Params:
    check_base(run)
    layers = run.keep if run.keep is not None else tuple(range(run.base.config.num_layers))
    chosen = range(len(layers)) if keep is None else keep
    own = unread_params(run.path, adapter_settings.shapes(config, run.settings))
    adapters = {path: leaf.read() for path, leaf in flatten_dict(own, sep="/").items()}
    base = unread(run.base.weights, run.base.config, tuple(layers[layer] for layer in chosen))
    forms = {}
    if run.settings.base != "float" and onto == "trained":
        forms = formats.forms(config, run.settings.base)
    scale, kernels = adapter_settings.scale_of(run.settings), parameters.kernels(config)
    merged = {}
    for path, leaf in flatten_dict(base, sep="/").items():
        a, b = adapters.get(f"{path}/a"), adapters.get(f"{path}/b")
        if a is None and path not in forms:
            merged[path] = leaf
            continue
        rows = np.array(chosen)
        added = None if a is None or b is None else (a[rows], b[rows], scale)
        stacked = len(kernels[path].leading)
        merged[path] = _changed(leaf, stacked, forms.get(path), added, run.masked)
    nested: Params = unflatten_dict(merged, sep="/")
    return nested


def _changed(
    leaf: Unread,
    stacked: int,
    form: Form | None,
    added: tuple[np.ndarray, np.ndarray, float] | None,
    masked: bool,
) -> Unread:
    """A kernel as its run had it: through its codes, and with what adapters add. float32.

    stacked: its first axes, along which there are many. added: a and b, with these axes, and scale.
    masked: zeros stay.
    """

    def change(kernel: np.ndarray, place: tuple[int, ...]) -> np.ndarray:
        kernel = values.contiguous(kernel, np.dtype(np.float32))
        if form is not None:
            kernel = _through_codes(kernel, form)
        if added is not None:
            a, b, scale = added[0][place], added[1][place], np.float32(added[2])
            new = kernel + scale * np.tensordot(a, b, 1)
            kernel = np.where(kernel == 0, np.float32(0), new) if masked else new
        return kernel

    def read() -> np.ndarray:
        if (one := leaf.read_one) is None:
            one = leaf.read().__getitem__
        whole = np.empty(leaf.shape, np.float32)
        for place in np.ndindex(leaf.shape[:stacked]):
            whole[place] = change(one(place), place)
        return whole

    read_one = None
    if (one := leaf.read_one) is not None:

        def read_one(place: tuple[int, ...]) -> np.ndarray:
            return change(one(place), place)

    return Unread(leaf.shape, np.dtype(np.float32), read, read_one)


def _through_codes(kernel: np.ndarray, form: Form) -> np.ndarray:
    """One matrix quantized and back, on a processor."""
    inputs = len(form.inputs)
    rows = np.moveaxis(kernel, range(inputs), range(-inputs, 0))
    rows = rows.reshape(math.prod(form.outputs), math.prod(form.inputs))
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        codes, scales = map(jax.numpy.asarray, formats.quantize(rows, form.kind, form.block))
        node = Quantized(codes, scales, form)
        return np.asarray(node.kernel(np.float32))
