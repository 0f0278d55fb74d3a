"""A model by name, ready to score."""

from __future__ import annotations

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from chopjax.checkpoint.compressed_tensors import held_as
from chopjax.checkpoint.load import Description, Loaded, describe, load
from chopjax.data.tokenizer import Tokenizer, load_tokenizer
from chopjax.disk.files import expanded
from chopjax.errors import UserError
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.formats import Kind
from chopjax.models.masked_attention import choose_masked
from chopjax.models.mesh import make_mesh, shardings
from chopjax.models.parameters import Params
from chopjax.models.quantized import places
from chopjax.models.scores import all_scores
from chopjax.models.tree_attention import BLOCKS, Tree
from chopjax.progress import say
from chopjax.score.engine import Engine, fitted_budget


def open_engine(
    model: str | Description,
    revision: str | None = None,
    dtype: str = "auto",
    max_length: int | None = None,
    rows: int | None = None,
    fsdp: int = 1,
    tensor: int = 1,
    weights: Kind | None = None,
) -> tuple[Loaded, Engine]:
    """Load a model over all devices and make an engine for it.

    model: by name, or as `describe` gave it, then with its revision. dtype: "auto" is float32 on
    CPU and bfloat16 elsewhere. rows: sequences of max_length tokens that a forward pass may hold;
    by default what fits the device. fsdp, tensor: devices that share the parameters, and each
    layer's work; the rest share the batch. weights: see where_quantized.
    """
    description = model
    if not isinstance(description, Description):
        description = describe(description, revision, quantized=True)
    config = description.config
    if max_length is not None and not 1 <= max_length <= config.max_positions:
        raise UserError(
            f"{description.name}: a length of {max_length} tokens was asked for; the context "
            f"length is {config.max_positions}"
        )
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype {dtype}: choose float32, bfloat16 or auto")
    mesh = None if len(jax.devices()) == 1 else make_mesh(fsdp=fsdp, tensor=tensor)
    where = where_quantized(description, weights, mesh or make_mesh())
    if where is None and mesh is not None:
        where = shardings(config, mesh)
    loaded = load(description, shardings=where, dtype=dtype, read_only=True)
    compute = Compute(dtype=dtype)
    if reason := why_plain(config, dtype):
        say(f"attention over rows: no kernel ({reason})")
    tokenizer = functools.partial(_tokenizer, loaded)
    engine = Engine(loaded.config, loaded.params, compute, max_length, mesh, tokenizer=tokenizer)
    if rows is not None:
        tokens = rows * engine.max_length
        engine.budget = dataclasses.replace(fitted_budget(config, mesh), tokens=tokens)
    return loaded, engine


def where_quantized(description: Description, weights: Kind | None, mesh: Mesh) -> Params | None:
    """Where parameters lie if the blocks' matrices are in few bits, by the checkpoint's own codes
    or quantized to `weights` while they are read; None where they are not.

    Raises UserError for both at once.
    """
    stored = held_as(description.raw_config)
    if stored is None:
        return None if weights is None else places(description.config, weights, mesh)
    if weights is not None:
        raise UserError(
            f"--weights {weights}: {description.name} has its weights in {stored.kind} already; "
            "leave the flag out, or take the checkpoint that it was made from"
        )
    return places(description.config, stored.kind, mesh, stored.block or None)


def why_plain(config: ModelConfig, dtype: str) -> str | None:
    """What keeps this accelerator's kernels from the scorer's rows; None for nothing, and where
    there are none."""
    windows = any(layer.window for layer in config.layers)
    scores = all_scores(config)[0]
    trees = Tree(jnp.zeros((1, 1), jnp.int32))
    length = BLOCKS[0]
    wanted = (trees, length, 0, jnp.dtype(dtype), config.head_dim, scores, windows)
    return choose_masked(*wanted)[1]


def _tokenizer(loaded: Loaded) -> Tokenizer:
    return dataclasses.replace(load_tokenizer(loaded.folder), name=loaded.name)


def use_compilation_cache() -> None:
    """Keep compiled programs on disk, so that the next run of the same shapes starts at once.

    In $JAX_COMPILATION_CACHE_DIR, which jax reads itself, or in the user's cache folder.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = expanded(home) / "chopjax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
