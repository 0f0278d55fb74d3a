"""`chopjax.Decoder`: a chopped checkpoint as a flax.nnx module, for any nnx program.

Its state is the parameter layout itself (models/parameters.py): `nnx.state(decoder, nnx.Param)` as
a pure dict is what the rest of chopjax passes around, and the computation is models/decoder.py's.

Axes: B batch, T time, E what the head reads, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from chopjax.checkpoint.describe import Description, describe, keep_layers
from chopjax.checkpoint.export import export
from chopjax.checkpoint.load import load
from chopjax.chop.surgery import chop_description
from chopjax.errors import UserError
from chopjax.keep import Keep, parse_keep
from chopjax.models import decoder
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.head import head_of, logits
from chopjax.models.loss import cross_entropy
from chopjax.models.mesh import shardings
from chopjax.models.parameters import Params


class Branch(nnx.Module):
    """A nested dict of parameters as modules: `blocks.attention.query` and so on."""

    def __init__(self, params: Params):
        for name, value in params.items():
            node = Branch(value) if isinstance(value, dict) else nnx.Param(value)
            setattr(self, name, node)


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """The checkpoint that a Decoder was read from. Compared by identity, as jit asks of what is
    static."""

    found: Description


class Decoder(Branch):
    """A decoder-only transformer over a scanned stack of blocks.

    config: what it computes; compute: how (dtype of activations, rematerialisation, attention).
    Both are static under jit.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        compute: Compute = Compute(),
        origin: Origin | None = None,
    ):
        super().__init__(params)
        self.config, self.compute, self.origin = config, compute, origin

    @classmethod
    def from_scratch(
        cls,
        config: ModelConfig,
        rngs: nnx.Rngs,
        compute: Compute = Compute(),
        param_dtype: Any = jnp.float32,
    ) -> Decoder:
        """Random parameters: normal with deviation 0.02, norms at one, biases at zero."""
        return cls(config, decoder.init(config, rngs.params(), param_dtype), compute)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        keep: str | Sequence[int] | None = None,
        *,
        revision: str | None = None,
        param_dtype: Any = None,
        compute: Compute = Compute(),
        mesh: Mesh | None = None,
    ) -> Decoder:
        """Read a Hugging Face folder or hub id, an import, or a training run.

        keep: the layers that stay, "0,13-23" or their numbers from 0; of a Hugging Face checkpoint
        the others are not read. param_dtype: of every parameter; as found by default. mesh: where
        the parameters are born sharded; the first device by default. Raises UserError.
        """
        description = describe(str(model), revision)
        kept = _kept(keep, description.config.num_layers)
        config = (description if kept is None else keep_layers(description, kept)).config
        where = None if mesh is None else shardings(config, mesh)
        loaded = load(str(model), revision, kept, where, param_dtype)
        params = loaded.params
        if kept is not None:
            loaded = chop_description(loaded, kept)
        about = {
            field.name: getattr(loaded, field.name) for field in dataclasses.fields(description)
        }
        return cls(config, params, compute, Origin(Description(**about)))

    def to_pretrained(
        self, folder: str | Path, dtype: str | None = None, overwrite: bool = False
    ) -> None:
        """Write a Hugging Face checkpoint; the folder appears when it is complete.

        dtype: "float32", "bfloat16" or "float16" for all tensors; by default the types that they
        were read in. Raises UserError where the decoder did not come from a checkpoint, whose
        config.json and tokenizer are needed.
        """
        if self.origin is None:
            raise UserError(
                "to_pretrained: this Decoder has random parameters and no checkpoint behind it, "
                "whose config.json and tokenizer would come along; begin with from_pretrained"
            )
        description = self.origin.found
        export(
            self.config,
            description.raw_config,
            self.params,
            description.folder,
            Path(folder),
            description.naming,
            dtype,
            description.provenance,
            dtypes=description.dtypes,
            metadata=description.metadata,
            overwrite=overwrite,
        )

    @property
    def params(self) -> Params:
        """The parameters as the plain nested dict of models/parameters.py."""
        return nnx.to_pure_dict(nnx.state(self, nnx.Param))

    def __call__(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Token ids to logits, [B, T, V] float32. Arguments as decoder.hidden_states has them."""
        params = self.params
        hidden_BTE = decoder.hidden_states(
            params, self.config, self.compute, tokens_BT, segments_BT, positions_BT
        )
        return logits(head_of(params, self.config), hidden_BTE)

    def loss(
        self,
        tokens_BT: jax.Array,
        targets_BT: jax.Array,
        weights_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Mean of -log p(target) in nats, weighted; the training step's own loss.

        Logits never exist whole. weights_BT: float32, all ones by default.
        """
        params = self.params
        hidden_BTE = decoder.hidden_states(
            params, self.config, self.compute, tokens_BT, segments_BT, positions_BT
        )
        if weights_BT is None:
            weights_BT = jnp.ones(targets_BT.shape, jnp.float32)
        weights_BT = weights_BT / jnp.maximum(weights_BT.sum(), 1)
        head = head_of(params, self.config)
        return cross_entropy(hidden_BTE, head, targets_BT, weights_BT)[0]


def _kept(keep: str | Sequence[int] | None, num_layers: int) -> Keep | None:
    if keep is None:
        return None
    return parse_keep(keep, num_layers) if isinstance(keep, str) else tuple(keep)
