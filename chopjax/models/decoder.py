"""The decoder: token ids in, hidden states out, one traced block whatever the depth.

Two faces. `Decoder` is a flax.nnx module; its parameters have exactly the layout of parameters.py.
The functions below it (`init`, `abstract`, `hidden_states`, `head_kernel`) take and give plain
nested dicts of arrays, which is what the rest of chopjax passes around.

Axes: B batch, T time, D model, E embedding table (D unless OPT projects), F feed-forward,
N query heads, K key/value heads, H head size, V vocabulary, L layers, P positions, S past tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from chopjax.models import positions
from chopjax.models.attention import BATCH_AXES, HEAD_AXIS, attend
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.linear import linear
from chopjax.models.masked_attention import attend_visible
from chopjax.models.parameters import Params
from chopjax.models.remat import is_kept, kept
from chopjax.models.sharding import constrain

INITIAL_STDDEV = 0.02  # GPT-2's and Llama's initializer_range


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}
REMAT_POLICIES = {"dots": is_kept, "full": jax.checkpoint_policies.nothing_saveable}


# How a layer's queries meet its keys and values: [B, T, N, H], twice [B, T, K, H] to [B, T, N, H].
Mix = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Past(NamedTuple):
    """Keys and values of S earlier tokens. B is 1 where all rows share one past."""

    key_LBSKH: jax.Array
    value_LBSKH: jax.Array
    visible_BS: jax.Array  # bool: the slots that hold a token


class Steps(NamedTuple):
    """A forward pass taken apart, for those who look at the residual stream between blocks.

    `hidden_states` is finish(block(… block(embed(tokens_BT), layer 0) …, layer L-1)).
    """

    embed: Callable[[jax.Array], jax.Array]  # tokens_BT → hidden_BTD, what enters the first block
    block: Callable[[jax.Array, Any], jax.Array]  # hidden_BTD, one layer of `stack` → hidden_BTD
    finish: Callable[[jax.Array], jax.Array]  # what leaves the last block → what the head reads
    stack: Any  # a pytree of the blocks' parameters, every leaf with the layer axis L first


@dataclasses.dataclass(frozen=True)
class _Make:
    """Makes parameters while a module is built."""

    rngs: nnx.Rngs
    dtype: Any

    def normal(self, *shape: int) -> nnx.Param:
        draw = jax.random.normal(self.rngs.params(), shape, self.dtype)
        return nnx.Param(draw * jnp.asarray(INITIAL_STDDEV, self.dtype))

    def zeros(self, *shape: int) -> nnx.Param:
        return nnx.Param(jnp.zeros(shape, self.dtype))

    def ones(self, *shape: int) -> nnx.Param:
        return nnx.Param(jnp.ones(shape, self.dtype))


class Norm(nnx.Module):
    """RMSNorm (arXiv 1910.07467) or layer norm (arXiv 1607.06450), computed in float32."""

    def __init__(self, config: ModelConfig, make: _Make):
        self.config = config
        if config.norm_affine:
            self.scale = make.ones(config.embed_dim)
            if config.norm == "layer":
                self.bias = make.zeros(config.embed_dim)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        wide_BTD = x_BTD.astype(jnp.float32)
        if self.config.norm == "layer":
            wide_BTD -= wide_BTD.mean(axis=-1, keepdims=True)
        variance = jnp.square(wide_BTD).mean(axis=-1, keepdims=True)
        wide_BTD *= jax.lax.rsqrt(variance + self.config.norm_epsilon)
        if self.config.norm_affine:
            wide_BTD *= self.scale[...].astype(jnp.float32)
            if self.config.norm == "layer":
                wide_BTD += self.bias[...].astype(jnp.float32)
        return wide_BTD.astype(x_BTD.dtype)


class Attention(nnx.Module):
    """Causal self-attention with N query heads on K key/value heads (arXiv 2305.13245)."""

    def __init__(self, config: ModelConfig, make: _Make):
        self.config = config
        D, N, K, H = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        self.query = make.normal(D, N, H)
        self.key = make.normal(D, K, H)
        self.value = make.normal(D, K, H)
        self.output = make.normal(N, H, D)
        if config.attention_bias:
            self.query_bias = make.zeros(N, H)
            self.key_bias = make.zeros(K, H)
            self.value_bias = make.zeros(K, H)
            self.output_bias = make.zeros(D)

    def __call__(
        self,
        x_BTD: jax.Array,
        rotation: tuple[jax.Array, jax.Array] | None,
        mix: Mix,
    ) -> jax.Array:
        has_bias = self.config.attention_bias

        def project(name: str) -> jax.Array:
            kernel_DNH = getattr(self, name)[...].astype(x_BTD.dtype)
            y_BTNH = linear(x_BTD, kernel_DNH)
            if has_bias:
                y_BTNH += getattr(self, f"{name}_bias")[...].astype(y_BTNH.dtype)
            return y_BTNH

        query_BTNH, key_BTKH, value_BTKH = project("query"), project("key"), project("value")
        if rotation is not None:
            query_BTNH = positions.rotate(query_BTNH, *rotation)
            key_BTKH = positions.rotate(key_BTKH, *rotation)
        query_BTNH, key_BTKH, value_BTKH = kept(query_BTNH), kept(key_BTKH), kept(value_BTKH)
        mixed_BTNH = mix(query_BTNH, key_BTKH, value_BTKH)
        kernel_NHD = self.output[...].astype(x_BTD.dtype)
        y_BTD = linear(mixed_BTNH, kernel_NHD, contracted=2)
        if has_bias:
            y_BTD += self.output_bias[...].astype(y_BTD.dtype)
        return y_BTD


class Mlp(nnx.Module):
    """Feed-forward, plain or gated (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, make: _Make):
        self.config = config
        D, F = config.embed_dim, config.mlp_dim
        if config.gated_mlp:
            self.gate = make.normal(D, F)
        self.up = make.normal(D, F)
        self.down = make.normal(F, D)
        if config.mlp_bias:
            if config.gated_mlp:
                self.gate_bias = make.zeros(F)
            self.up_bias = make.zeros(F)
            self.down_bias = make.zeros(D)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        def project(x: jax.Array, name: str) -> jax.Array:
            y = linear(x, getattr(self, name)[...].astype(x.dtype))
            if self.config.mlp_bias:
                y += getattr(self, f"{name}_bias")[...].astype(y.dtype)
            return y

        activation = ACTIVATIONS[self.config.activation]
        if self.config.gated_mlp:
            gate_BTF, up_BTF = kept(project(x_BTD, "gate")), kept(project(x_BTD, "up"))
            inner_BTF = activation(gate_BTF) * up_BTF
        else:
            inner_BTF = activation(kept(project(x_BTD, "up")))
        return project(inner_BTF, "down")


class Block(nnx.Module):
    """Attention and feed-forward on the residual stream; norms before (or, OPT-350m, after)."""

    def __init__(self, config: ModelConfig, make: _Make):
        self.config = config
        self.attention_norm = Norm(config, make)
        self.attention = Attention(config, make)
        self.mlp_norm = Norm(config, make)
        self.mlp = Mlp(config, make)

    def __call__(
        self,
        hidden_BTD: jax.Array,
        rotation: tuple[jax.Array, jax.Array] | None,
        mix: Mix,
    ) -> jax.Array:
        if self.config.pre_norm:
            normed_BTD = self.attention_norm(hidden_BTD)
            hidden_BTD = kept(hidden_BTD + self.attention(normed_BTD, rotation, mix))
            return hidden_BTD + self.mlp(self.mlp_norm(hidden_BTD))
        hidden_BTD = kept(hidden_BTD + self.attention(hidden_BTD, rotation, mix))
        hidden_BTD = self.attention_norm(hidden_BTD)
        return self.mlp_norm(hidden_BTD + self.mlp(hidden_BTD))


class Embed(nnx.Module):
    """Token table, and learned positions where the family has them."""

    def __init__(self, config: ModelConfig, make: _Make):
        self.config = config
        self.embedding = make.normal(config.vocab_size, config.table_dim)
        if config.rope is None:
            rows = config.max_positions + config.position_offset
            self.positions = make.normal(rows, config.embed_dim)
        if config.embed_projection:
            self.project_in = make.normal(config.table_dim, config.embed_dim)

    def __call__(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, compute: Compute
    ) -> jax.Array:
        # Without these, the compiler looks tokens up where the table's columns lie, for the whole
        # batch everywhere. Gathering the table is the lesser evil.
        table_VE = constrain(self.embedding[...], HEAD_AXIS)
        x_BTE = constrain(table_VE[tokens_BT].astype(compute.dtype), BATCH_AXES)
        if self.config.embed_projection:
            kernel_ED = self.project_in[...].astype(compute.dtype)
            x_BTE = x_BTE @ kernel_ED
        if self.config.rope is None:
            rows_BT = positions_BT + self.config.position_offset
            x_BTE += self.positions[...][rows_BT].astype(compute.dtype)
        return x_BTE


class Head(nnx.Module):
    """What stands between the final norm and the logits; empty where the head is the table."""

    def __init__(self, config: ModelConfig, make: _Make):
        if config.embed_projection:
            self.project_out = make.normal(config.embed_dim, config.table_dim)
        if not config.tie_embeddings:
            self.kernel = make.normal(config.table_dim, config.vocab_size)


class Decoder(nnx.Module):
    """A decoder-only transformer over a scanned stack of blocks."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, param_dtype: Any = jnp.float32):
        make = _Make(rngs, param_dtype)
        self.config = config
        self.embed = Embed(config, make)

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(config, _Make(rngs, param_dtype))

        self.blocks = stack(rngs)
        if config.final_norm:
            self.final_norm = Norm(config, make)
        self.head = Head(config, make)

    def __call__(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        compute: Compute = Compute(),
    ) -> jax.Array:
        """What the head reads, [B, T, E] in compute.dtype. See `hidden_states`."""
        if positions_BT is None:
            positions_BT = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
        steps = self.steps(positions_BT, segments_BT, compute)

        def step(hidden_BTD: jax.Array, layer: Any) -> tuple[jax.Array, None]:
            return steps.block(hidden_BTD, layer), None

        if compute.remat != "none":
            step = jax.checkpoint(step, policy=REMAT_POLICIES[compute.remat], prevent_cse=False)
        hidden_BTD, _ = jax.lax.scan(step, steps.embed(tokens_BT), steps.stack)
        return steps.finish(hidden_BTD)

    def steps(
        self, positions_BT: jax.Array, segments_BT: jax.Array | None, compute: Compute
    ) -> Steps:
        """The forward pass taken apart. See the function `steps`."""
        rotation = self._rotation(positions_BT)
        block_definition, stack = nnx.split(self.blocks)
        mix = functools.partial(attend, segments_BT=segments_BT, implementation=compute.attention)

        def embed(tokens_BT: jax.Array) -> jax.Array:
            with jax.default_matmul_precision(compute.precision):
                return self.embed(tokens_BT, positions_BT, compute)

        def block(hidden_BTD: jax.Array, layer: Any) -> jax.Array:
            with jax.default_matmul_precision(compute.precision):
                return nnx.merge(block_definition, layer)(hidden_BTD, rotation, mix)

        def finish(hidden_BTD: jax.Array) -> jax.Array:
            with jax.default_matmul_precision(compute.precision):
                return self._finish(hidden_BTD)

        return Steps(embed, block, finish, stack)

    def extend(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        visible_BTT: jax.Array,
        past: Past | None = None,
        compute: Compute = Compute(),
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """As __call__, over an explicit mask and a past. See the function `extend`."""
        rotation = self._rotation(positions_BT)
        block_definition, stack = nnx.split(self.blocks)
        kept = None if past is None else (past.key_LBSKH, past.value_LBSKH)

        def step(hidden_BTD: jax.Array, layer: Any) -> tuple[jax.Array, Any]:
            block, kept = layer
            fresh = []

            def mix(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
                fresh.append((key, value))
                before = None if past is None else (*kept, past.visible_BS)
                return attend_visible(query, key, value, visible_BTT, before)

            return nnx.merge(block_definition, block)(hidden_BTD, rotation, mix), fresh[0]

        with jax.default_matmul_precision(compute.precision):
            hidden_BTD = self.embed(tokens_BT, positions_BT, compute)
            hidden_BTD, fresh = jax.lax.scan(step, hidden_BTD, (stack, kept))
            return self._finish(hidden_BTD), fresh

    def _rotation(self, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        rope = self.config.rope
        return None if rope is None else positions.angles(rope, self.config.head_dim, positions_BT)

    def _finish(self, hidden_BTD: jax.Array) -> jax.Array:
        if self.config.final_norm:
            hidden_BTD = self.final_norm(hidden_BTD)
        if self.config.embed_projection:
            hidden_BTD = hidden_BTD @ self.head.project_out[...].astype(hidden_BTD.dtype)
        return hidden_BTD


def init(config: ModelConfig, key: jax.Array, dtype: Any = jnp.float32) -> Params:
    """Random parameters: normal with deviation 0.02, norms at one, biases at zero."""
    decoder = Decoder(config, nnx.Rngs(params=key), dtype)
    return nnx.to_pure_dict(nnx.state(decoder, nnx.Param))


def abstract(config: ModelConfig, dtype: Any = jnp.float32) -> Params:
    """The shapes and dtypes of `init`, without computing anything."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0), dtype))


@functools.cache
def _definition(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    decoder = nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0)))
    return nnx.split(decoder)


def decoder_of(params: Params, config: ModelConfig) -> Decoder:
    """The nnx module over these parameters."""
    graph, state = _definition(config)
    state = jax.tree.map(lambda leaf: leaf, state)  # replaced in place below; keep the cached one
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def hidden_states(
    params: Params,
    config: ModelConfig,
    compute: Compute,
    tokens_BT: jax.Array,
    segments_BT: jax.Array | None = None,
    positions_BT: jax.Array | None = None,
) -> jax.Array:
    """Token ids to what the head reads: [B, T, E] in compute.dtype.

    tokens_BT: int32. segments_BT: int32; a token attends to earlier tokens of its own segment (0
    is padding, a segment like any other); None is one segment. positions_BT: int32, default
    0 … T-1 for every row. Learned positions past the table are clamped, as jax gathers do: callers
    keep T within config.max_positions.
    """
    return decoder_of(params, config)(tokens_BT, segments_BT, positions_BT, compute)


def steps(
    params: Params,
    config: ModelConfig,
    compute: Compute,
    positions_BT: jax.Array,
    segments_BT: jax.Array | None = None,
) -> Steps:
    """The forward pass over rows with these positions, taken apart; see Steps.

    compute.remat is not read: who differentiates decides.
    """
    return decoder_of(params, config).steps(positions_BT, segments_BT, compute)


def extend(
    params: Params,
    config: ModelConfig,
    compute: Compute,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    visible_BTT: jax.Array,
    past: Past | None = None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Hidden states of tokens that see each other by a mask, and a past computed before.

    visible_BTT: bool, [b, t, s]: token t sees token s of its row. Every token must see itself.
    Returns what `hidden_states` returns, and the new tokens' keys (rotated) and values, both
    [L, B, T, K, H]: the stuff of a later past. compute.remat and compute.attention are not read.
    """
    return decoder_of(params, config).extend(tokens_BT, positions_BT, visible_BTT, past, compute)


def head_kernel(params: Params, config: ModelConfig) -> jax.Array:
    """[E, V]: logits are hidden_BTE @ kernel_EV. A tied head is the embedding table transposed."""
    return params["embed"]["embedding"].T if config.tie_embeddings else params["head"]["kernel"]
