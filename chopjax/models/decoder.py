"""The decoder: token ids in, hidden states out, one traced block whatever the depth.

Functions over the nested dict of parameters.py. `chopjax.Decoder` (flax_decoder.py) is the same as
a flax.nnx module.

Axes: B batch, T time, D model, E embedding table (D unless OPT projects), F feed-forward,
N query heads, K key/value heads, H head size, V vocabulary, L layers, P positions, S past tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from chopjax.models import experts, parameters, positions
from chopjax.models.activations import activated
from chopjax.models.attention import attend, before_keeping
from chopjax.models.bits import as_bits, of_bits
from chopjax.models.borrowed import layer_of, without_stack
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig, Norm, Rope
from chopjax.models.linear import project
from chopjax.models.masked_attention import attend_visible, choose_masked
from chopjax.models.mesh import BATCH_AXES, HEAD_AXIS, constrain
from chopjax.models.parameters import Params
from chopjax.models.remat import MLP_NAME, POLICIES, kept
from chopjax.models.scores import all_scores, scores_of
from chopjax.models.tree_attention import LayerPast, Tiles, Tree, attend_tree

INITIAL_STDDEV = 0.02  # GPT-2's and Llama's initializer_range

# How a layer's queries meet its keys and values: [B, T, N, H], twice [B, T, K, H] to [B, T, N, H].
Mix = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# cos and sin of positions.py; None where nothing turns.
Rotation = tuple[jax.Array, jax.Array] | None


class Layer(NamedTuple):
    """One element of the scanned stack, or all of them with the layer axis L first.

    kind: which of config.kinds the layer is, int32. It is no parameter: it has no gradient.
    """

    params: Params
    kind: jax.Array


class Past(NamedTuple):
    """Keys and values of S earlier tokens. B is 1 where all rows share one past."""

    key_LBSKH: jax.Array
    value_LBSKH: jax.Array
    visible_BS: jax.Array  # bool: the slots that hold a token
    positions_BS: jax.Array  # int32: of these tokens in their text


class Parts(NamedTuple):
    """A forward pass taken apart, for those who look at the residual stream between blocks.

    `hidden_states` is finish(block(… block(embed(tokens_BT), layer 0) …, layer L-1)).
    """

    embed: Callable[[jax.Array], jax.Array]  # tokens_BT → hidden_BTD, what enters the first block
    block: Callable[[jax.Array, Layer], jax.Array]  # hidden_BTD, one of `stack` → hidden_BTD
    # The same → what of the block's sum is not the feed-forward's, and the feed-forward's part.
    halves: Callable[[jax.Array, Layer], tuple[jax.Array, jax.Array]]
    # The same → what `block` gives, and what its attention gave, before any norm, scale or sum.
    opened: Callable[[jax.Array, Layer], tuple[jax.Array, jax.Array]]
    finish: Callable[[jax.Array], jax.Array]  # what leaves the last block → what the head reads
    stack: Layer  # all of them: every leaf with the layer axis L first


class Extension(NamedTuple):
    """`extend` taken apart: finish(block(… block(embed(tokens_BT), layer 0) …, layer L-1))."""

    embed: Callable[[jax.Array], jax.Array]  # tokens_BT → hidden_BTD
    # hidden_BTD, one of `stack`, its past → hidden_BTD, and the new tokens' key and value
    block: Callable[
        [jax.Array, Layer, LayerPast | None], tuple[jax.Array, tuple[jax.Array, jax.Array]]
    ]
    finish: Callable[[jax.Array], jax.Array]  # hidden_BTD → what the head reads


def init(config: ModelConfig, key: jax.Array, dtype: Any = jnp.float32) -> Params:
    """Random parameters: normal with deviation 0.02, norms at one, biases at zero."""
    rows, shapes = parameters.table(config), parameters.shapes(config)
    flat = {}
    for path_key, (path, row) in zip(jax.random.split(key, len(rows)), rows.items(), strict=True):
        if row.initial == "normal":
            draw = jax.random.normal(path_key, shapes[path], dtype)
            flat[path] = draw * jnp.asarray(INITIAL_STDDEV, dtype)
        else:
            flat[path] = jnp.full(shapes[path], 1 if row.initial == "ones" else 0, dtype)
    params: Params = unflatten_dict(flat, sep="/")
    return params


def abstract(config: ModelConfig, dtype: Any = jnp.float32) -> Params:
    """The shapes and dtypes of `init`, without computing anything."""
    shapes: Params = jax.eval_shape(lambda: init(config, jax.random.key(0), dtype))
    return shapes


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
    if positions_BT is None:
        positions_BT = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
    taken = parts(params, config, compute, positions_BT, segments_BT)

    def step(hidden_BTD: jax.Array, layer: Layer) -> tuple[jax.Array, None]:
        return taken.block(hidden_BTD, layer), None

    if compute.remat != "none":
        step = jax.checkpoint(step, policy=POLICIES[compute.remat], prevent_cse=False)
    hidden_BTD, _ = jax.lax.scan(
        step, taken.embed(tokens_BT), taken.stack, unroll=compute.layers == "unrolled"
    )
    return taken.finish(hidden_BTD)


def parts(
    params: Params,
    config: ModelConfig,
    compute: Compute,
    positions_BT: jax.Array,
    segments_BT: jax.Array | None = None,
) -> Parts:
    """The forward pass over rows with these positions, taken apart; see Parts.

    compute.remat is not read: who differentiates decides.
    """
    rotations = _rotations(config, positions_BT)

    def embed(tokens_BT: jax.Array) -> jax.Array:
        with jax.default_matmul_precision(compute.precision):
            return _embed(params["embed"], config, compute, tokens_BT, positions_BT)

    def opened(hidden_BTD: jax.Array, layer: Layer) -> tuple[jax.Array, jax.Array]:
        layer = layer._replace(params=layer_of(params["blocks"], layer.params))
        mix = _training_mix(config, layer.kind, segments_BT, compute.attention)
        with jax.default_matmul_precision(compute.precision):
            return _block(layer, config, hidden_BTD, rotations, mix)

    def block(hidden_BTD: jax.Array, layer: Layer) -> jax.Array:
        return opened(hidden_BTD, layer)[0]

    def halves(hidden_BTD: jax.Array, layer: Layer) -> tuple[jax.Array, jax.Array]:
        layer = layer._replace(params=layer_of(params["blocks"], layer.params))
        mix = _training_mix(config, layer.kind, segments_BT, compute.attention)
        with jax.default_matmul_precision(compute.precision):
            return _halves(layer, config, hidden_BTD, rotations, mix)[:2]

    def finish(hidden_BTD: jax.Array) -> jax.Array:
        with jax.default_matmul_precision(compute.precision):
            return _finish(params, config, hidden_BTD)

    return Parts(embed, block, halves, opened, finish, stack(params, config))


def stack(params: Params, config: ModelConfig) -> Layer:
    """What the scan walks over."""
    kinds_L = np.array([config.kinds.index(layer) for layer in config.layers], np.int32)
    return Layer(without_stack(params["blocks"]), jnp.asarray(kinds_L))


def extend(
    params: Params,
    config: ModelConfig,
    compute: Compute,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    visible: jax.Array | Tree,
    past: Past | None = None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Hidden states of tokens that see each other by a mask, and a past computed before.

    visible: bool, [b, t, s]: token t sees token s of its row. Every token must see itself. Or the
    same as a Tree, for which accelerators have kernels; these have no gradient.
    Returns what `hidden_states` returns, and the new tokens' keys (rotated) and values, both
    [L, B, T, K, H], which a Past of later tokens holds. There is no gradient by the parameters of
    blocks: on processors they may go as bits (bits.py). compute.remat is not read; of
    compute.attention, "xla" asks for no kernel and no tiles.
    """
    taken = extension(params, config, compute, positions_BT, visible)
    before_L = None if past is None else (past.key_LBSKH, past.value_LBSKH)

    def step(hidden_BTD: jax.Array, slice_of_L: Any) -> tuple[jax.Array, Any]:
        layer, before = of_bits(slice_of_L)
        layer = layer._replace(params=layer_of(params["blocks"], layer.params))
        seen = None
        if past is not None:
            seen = LayerPast(before[0], before[1], past.visible_BS, past.positions_BS)
        hidden_BTD, fresh = taken.block(hidden_BTD, layer, seen)
        return hidden_BTD, as_bits(fresh)

    hidden_BTD = taken.embed(tokens_BT)
    walked = as_bits((stack(params, config), before_L))
    hidden_BTD, fresh = jax.lax.scan(step, hidden_BTD, walked)
    return taken.finish(hidden_BTD), of_bits(fresh)


def extension(
    params: Params,
    config: ModelConfig,
    compute: Compute,
    positions_BT: jax.Array,
    visible: jax.Array | Tree,
) -> Extension:
    """`extend` taken apart; see Extension. params: `blocks` is not read."""
    rotations = _rotations(config, positions_BT)
    scores = all_scores(config)[0]  # they differ in their windows alone, which are data here
    tree = visible if isinstance(visible, Tree) else None
    windows = any(kind.window for kind in config.kinds)

    def embed(tokens_BT: jax.Array) -> jax.Array:
        with jax.default_matmul_precision(compute.precision):
            return _embed(params["embed"], config, compute, tokens_BT, positions_BT)

    def block(
        hidden_BTD: jax.Array, layer: Layer, past: LayerPast | None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        window = _window(config, layer.kind)
        (B, T), S = hidden_BTD.shape[:2], 0 if past is None else past.visible_BS.shape[1]
        kernel = "plain"
        if compute.attention != "xla":
            dtype = jnp.dtype(compute.dtype)
            kernel, _ = choose_masked(tree, T, S, dtype, config.head_dim, scores, windows)
        shown = visible.visible(T) if isinstance(visible, Tree) else visible
        visible_BTT = jnp.broadcast_to(shown, (B, T, T))
        fresh = []

        def mix(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            fresh.append((key, value))
            if kernel == "cudnn":
                return attend(query, key, value, None, kernel, scores)
            if kernel != "plain" and tree is not None:
                tiles = Tiles(positions_BT, window) if kernel == "tiles" else None
                return attend_tree(query, key, value, tree, past, scores, tiles)
            return attend_visible(
                query, key, value, visible_BTT, positions_BT, past, scores, window
            )

        with jax.default_matmul_precision(compute.precision):
            return _block(layer, config, hidden_BTD, rotations, mix)[0], fresh[0]

    def finish(hidden_BTD: jax.Array) -> jax.Array:
        with jax.default_matmul_precision(compute.precision):
            return _finish(params, config, hidden_BTD)

    return Extension(embed, block, finish)


# --------------------------------------------------------------------------- Parts of the above


def _embed(
    embed: Params,
    config: ModelConfig,
    compute: Compute,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
) -> jax.Array:
    """Token table, and learned positions where the family has them."""
    # Without these, the compiler looks tokens up where the table's columns lie, for the whole
    # batch everywhere. Gathering the table is the lesser evil.
    table_VE = constrain(embed["embedding"], HEAD_AXIS)
    x_BTE = constrain(table_VE[tokens_BT].astype(compute.dtype), BATCH_AXES)
    if config.embed_projection:
        x_BTE = project(embed, "project_in", x_BTE)
    if config.embed_scale != 1:
        # transformers rounds the scale to the weights' type, too.
        x_BTE *= jnp.asarray(config.embed_scale, x_BTE.dtype)
    if config.positions == "learned":
        rows_BT = positions_BT + config.position_offset
        x_BTE += embed["positions"][rows_BT].astype(compute.dtype)
    if config.embed_norm:
        x_BTE = _norm(embed.get("norm"), config.norm, x_BTE)
    return x_BTE


def _block(
    layer: Layer, config: ModelConfig, hidden_BTD: jax.Array, rotations: Rotation, mix: Mix
) -> tuple[jax.Array, jax.Array]:
    """Attention and feed-forward on the residual stream, and the norms where the family has them:

    before    h = x + s·attention(n(x));     y = h + s·mlp(n(h))
    after     h = x + s·n(attention(x));     y = h + s·n(mlp(h))
    both      h = x + s·n(attention(n(x)));  y = h + s·n(mlp(n(h)))
    residual  h = n(x + attention(x));       y = n(h + mlp(h))
    parallel  y = x + attention(n(x)) + mlp(n(x)), with one norm or two

    Returns y and attention(…).
    """
    rest_BTD, fed_BTD, attended_BTD = _halves(layer, config, hidden_BTD, rotations, mix)
    summed_BTD = rest_BTD + fed_BTD
    if config.norm_place == "residual":
        summed_BTD = _norm(layer.params.get("mlp_norm"), config.norm, summed_BTD)
    return summed_BTD, attended_BTD


def _halves(
    layer: Layer, config: ModelConfig, hidden_BTD: jax.Array, rotations: Rotation, mix: Mix
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The two sides of the last sum of `_block`: the second is all that the feed-forward adds, its
    own norm and the residual scale included. The third is what attention gave."""
    block, rotation = layer.params, _rotation(config, rotations, layer.kind)

    def attention(x_BTD: jax.Array) -> jax.Array:
        return _attention(block["attention"], config, x_BTD, rotation, mix)

    def mlp(x_BTD: jax.Array) -> jax.Array:
        return _mlp(block["mlp"], config, x_BTD)

    def norm(name: str, x_BTD: jax.Array) -> jax.Array:
        return _norm(block.get(name), config.norm, x_BTD)

    def scaled(y_BTD: jax.Array) -> jax.Array:
        return y_BTD if config.residual_scale == 1 else y_BTD * config.residual_scale

    if config.norm_place == "residual":
        attended_BTD = attention(hidden_BTD)
        hidden_BTD = norm("attention_norm", kept(hidden_BTD + attended_BTD))
        return hidden_BTD, mlp(hidden_BTD), attended_BTD
    before, after = config.norm_place != "after", config.norm_place != "before"
    x_BTD = norm("attention_norm", hidden_BTD) if before else hidden_BTD
    attended_BTD = attention(x_BTD)
    if config.parallel != "no":
        if config.parallel == "two_norms":
            x_BTD = norm("mlp_norm", hidden_BTD)
        return hidden_BTD + kept(attended_BTD), mlp(x_BTD), attended_BTD
    added_BTD = norm("attention_output_norm", attended_BTD) if after else attended_BTD
    hidden_BTD = kept(hidden_BTD + scaled(added_BTD))
    fed_BTD = mlp(norm("mlp_norm", hidden_BTD) if before else hidden_BTD)
    if after:
        fed_BTD = norm("mlp_output_norm", fed_BTD)
    return hidden_BTD, scaled(fed_BTD), attended_BTD


def _norm(params: Params | None, norm: Norm, x: jax.Array, axes: int = 1) -> jax.Array:
    """RMSNorm or layer norm over the last axes, computed in float32.

    params: None where there is nothing to learn.
    """
    over = tuple(range(-axes, 0))
    wide = x.astype(jnp.float32)
    # A number or two for each vector, without which a backward pass reads all of x once more.
    if norm.kind == "layer":
        wide -= kept(wide.mean(axis=over, keepdims=True))
    variance = kept(jnp.square(wide).mean(axis=over, keepdims=True))
    wide *= jax.lax.rsqrt(variance + norm.epsilon)
    if params is not None and norm.scale:
        scale = params["scale"].astype(jnp.float32)
        wide *= scale + norm.offset if norm.offset else scale
    if params is not None and norm.bias:
        wide += params["bias"].astype(jnp.float32)
    return wide.astype(x.dtype)


def _attention(
    attention: Params, config: ModelConfig, x_BTD: jax.Array, rotation: Rotation, mix: Mix
) -> jax.Array:
    """Causal self-attention with N query heads on K key/value heads (arXiv 2305.13245)."""
    query_BTNH = project(attention, "query", x_BTD)
    key_BTKH = project(attention, "key", x_BTD)
    value_BTKH = project(attention, "value", x_BTD)

    def normed(name: str, x: jax.Array) -> jax.Array:
        assert config.qk_norm is not None
        axes = 2 if config.qk_norm.over == "all_heads" else 1
        return _norm(attention.get(name), config.qk_norm.norm, x, axes)

    if config.qk_norm is not None and not config.qk_norm.after_rope:
        query_BTNH, key_BTKH = normed("query_norm", query_BTNH), normed("key_norm", key_BTKH)
    if (clip := config.clip_qkv) is not None:
        query_BTNH, key_BTKH, value_BTKH = (
            jnp.clip(x, -clip, clip) for x in (query_BTNH, key_BTKH, value_BTKH)
        )
    if rotation is not None:
        interleaved = any(rope.interleaved for rope in _ropes(config) if rope is not None)
        query_BTNH = positions.rotate(query_BTNH, *rotation, interleaved)
        key_BTKH = positions.rotate(key_BTKH, *rotation, interleaved)
    if config.qk_norm is not None and config.qk_norm.after_rope:
        query_BTNH, key_BTKH = normed("query_norm", query_BTNH), normed("key_norm", key_BTKH)
    mixed_BTNH = mix(query_BTNH, key_BTKH, value_BTKH)
    return project(attention, "output", mixed_BTNH, contracted=2)


def _mlp(mlp: Params, config: ModelConfig, x_BTD: jax.Array) -> jax.Array:
    """Feed-forward, plain or gated, or one of experts."""
    if config.experts is not None:
        return experts.feed_forward(mlp, config, x_BTD)
    if config.gated_mlp:
        gate_BTF = kept(project(mlp, "gate", x_BTD), MLP_NAME)
        up_BTF = kept(project(mlp, "up", x_BTD), MLP_NAME)
        inner_BTF = activated(config.activation, gate_BTF, up_BTF)
    else:
        inner_BTF = activated(config.activation, kept(project(mlp, "up", x_BTD), MLP_NAME))
    return project(mlp, "down", inner_BTF)


def _ropes(config: ModelConfig) -> tuple[Rope | None, ...]:
    """The different ropes of the layers, in order of appearance; None: a layer does not turn.

    They turn the same pairs and differ in how far.
    """
    return tuple(dict.fromkeys(kind.rope for kind in config.kinds))


def _rotations(config: ModelConfig, positions_BT: jax.Array) -> Rotation:
    """cos and sin of every rope, made once for all layers; several are stacked."""
    ropes = _ropes(config)
    turning = [rope for rope in ropes if rope is not None]
    turned = {rope: positions.angles(rope, config.head_dim, positions_BT) for rope in turning}
    if not turned:
        return None
    cos_BT1R, sin_BT1R = turned[turning[0]]
    # To turn by nothing changes no bit.
    still = jnp.ones_like(cos_BT1R), jnp.zeros_like(sin_BT1R)
    if len(ropes) == 1:
        return cos_BT1R, sin_BT1R
    cosines, sines = zip(*(still if rope is None else turned[rope] for rope in ropes), strict=True)
    return jnp.stack(cosines), jnp.stack(sines)


def _rotation(config: ModelConfig, rotations: Rotation, kind: jax.Array) -> Rotation:
    """Those of one layer."""
    ropes = _ropes(config)
    if rotations is None or len(ropes) == 1:
        return rotations
    which = jnp.asarray([ropes.index(each.rope) for each in config.kinds])[kind]
    return rotations[0][which], rotations[1][which]


def _training_mix(
    config: ModelConfig, kind: jax.Array, segments_BT: jax.Array | None, implementation: str
) -> Mix:
    """Attention of one layer over whole rows.

    A window is static in every kernel that skips work for it, so that layers of several windows
    choose between as many programs.
    """
    several = all_scores(config)

    def mix(query_BTNH: jax.Array, key_BTKH: jax.Array, value_BTKH: jax.Array) -> jax.Array:
        query_BTNH, left = before_keeping(query_BTNH, implementation, several)
        inputs = kept(query_BTNH), kept(key_BTKH), kept(value_BTKH)
        attends = [
            functools.partial(
                attend, segments_BT=segments_BT, implementation=implementation, scores=scores
            )
            for scores in left
        ]
        if len(attends) == 1:
            return attends[0](*inputs)
        which = [several.index(scores_of(config, each)) for each in config.kinds]
        mixed_BTNH: jax.Array = jax.lax.switch(jnp.asarray(which)[kind], attends, *inputs)
        return mixed_BTNH

    return mix


def _window(config: ModelConfig, kind: jax.Array) -> jax.Array | None:
    """One layer's where the mask is data, and so is the window; None where no layer has one."""
    windows = [each.window for each in config.kinds]
    if not any(windows):
        return None
    endless = np.iinfo(np.int32).max
    return jnp.asarray([window or endless for window in windows])[kind]


def _finish(params: Params, config: ModelConfig, hidden_BTD: jax.Array) -> jax.Array:
    if config.final_norm:
        hidden_BTD = _norm(params.get("final_norm"), config.norm, hidden_BTD)
    if config.embed_projection:
        return project(params["head"], "project_out", hidden_BTD)
    return hidden_BTD
