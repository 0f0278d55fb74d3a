"""A feed-forward of experts: every token through the few that its router picks.

No token is dropped: tokens are sorted by expert, and the products are grouped by expert
(grouped.py; arXiv 2211.15841 has the idea).

Healing has no term that keeps experts equally busy: the loss is that of the next token alone, as
transformers has it too unless output_router_logits is set.

Axes: B batch, T time, D model, F an expert's feed-forward, X experts, M = B·T tokens, C experts of
a token, R = M·C rows.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from chopjax.models import parameters
from chopjax.models.activations import activated
from chopjax.models.config import Experts, ModelConfig
from chopjax.models.grouped import grouped
from chopjax.models.linear import linear, stacked
from chopjax.models.mesh import BATCH_AXES, HEAD_AXIS, partition
from chopjax.models.parameters import Params
from chopjax.models.remat import MLP_NAME, kept


def feed_forward(mlp: Params, config: ModelConfig, x_BTD: jax.Array) -> jax.Array:
    """Σ over a token's experts of weight · down(activation(gate(x)) · up(x)); [B, T, D].

    On a mesh every device sorts its own rows of the batch: a sort over all of it would gather it.
    """
    assert config.experts is not None
    logits_BTX = linear(x_BTD.astype(jnp.float32), mlp["router"])
    kernels = [stacked(mlp, name, x_BTD.dtype) for name in parameters.EXPERTS]
    here = functools.partial(_on_one_device, experts=config.experts, activation=config.activation)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return here(x_BTD, logits_BTX, *kernels)
    size = parameters.sizes(config)
    specs = [
        partition(dims.removeprefix("L "), size, mesh.shape) for dims in parameters.EXPERTS.values()
    ]
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    rows = PartitionSpec(None if x_BTD.shape[0] % shards else BATCH_AXES)

    def everywhere(x_BTD: jax.Array, logits_BTX: jax.Array, *parts: jax.Array) -> jax.Array:
        whole = [_gathered(part, spec) for part, spec in zip(parts, specs, strict=True)]
        fed_BTD: jax.Array = jax.lax.psum(here(x_BTD, logits_BTX, *whole), HEAD_AXIS)
        return fed_BTD

    run = jax.shard_map(
        everywhere, mesh=mesh, in_specs=(rows, rows, *specs), out_specs=rows, check_vma=False
    )
    fed_BTD: jax.Array = run(x_BTD, logits_BTX, *kernels)
    return fed_BTD


def _gathered(kernels: jax.Array, spec: PartitionSpec) -> jax.Array:
    """A device's part of the kernels, whole but for the feed-forward axis.

    Said here and not left to the compiler: the gradient then is summed straight into parts.
    """
    for axis, name in enumerate(spec):
        if name not in (None, HEAD_AXIS):
            kernels = jax.lax.all_gather(kernels, name, axis=axis, tiled=True)
    return kernels


def _on_one_device(
    x_BTD: jax.Array,
    logits_BTX: jax.Array,
    gate_XDF: jax.Array,
    up_XDF: jax.Array,
    down_XFD: jax.Array,
    experts: Experts,
    activation: str,
) -> jax.Array:
    """Where F is in parts, the result is the part's share of the sum."""
    x_MD = x_BTD.reshape(-1, x_BTD.shape[-1])
    choice_MC, weight_MC = route(logits_BTX.reshape(-1, experts.count), experts)
    # Kept, like the choice: the backward pass must not sort in another way than what it keeps of
    # the products is sorted.
    order_R = kept(jnp.argsort(choice_MC.reshape(-1), stable=True))
    place_R = kept(jnp.argsort(order_R))
    size_X = (choice_MC.reshape(-1, 1) == jnp.arange(experts.count)).sum(0, dtype=jnp.int32)

    x_RD = spread(x_MD, order_R, place_R, experts.per_token)
    weight_R1 = spread(weight_MC.reshape(-1, 1), order_R, place_R, 1)
    gate_RF = kept(grouped(x_RD, gate_XDF, size_X), MLP_NAME)
    up_RF = kept(grouped(x_RD, up_XDF, size_X), MLP_NAME)
    # Weighted ahead of the last product, whose result the backward pass then has no use for.
    inner_RF = (activated(activation, gate_RF, up_RF) * weight_R1).astype(x_BTD.dtype)
    y_RD = grouped(inner_RF, down_XFD, size_X)
    return summed(y_RD, order_R, place_R, experts.per_token).reshape(x_BTD.shape)


def route(logits_MX: jax.Array, experts: Experts) -> tuple[jax.Array, jax.Array]:
    """Which experts a token takes, and with what weights: [M, C], int32 and float32."""
    share_MX = jax.nn.softmax(logits_MX.astype(jnp.float32), axis=-1)
    _, choice_MC = jax.lax.top_k(jax.lax.stop_gradient(share_MX), experts.per_token)
    choice_MC = kept(choice_MC)
    # A sum over a mask and no lookup, whose derivative would be a scatter.
    mask_MCX = choice_MC[..., None] == jnp.arange(experts.count)
    weight_MC = jnp.where(mask_MCX, share_MX[:, None], 0).sum(-1)
    if experts.renormalise:
        weight_MC /= weight_MC.sum(-1, keepdims=True)
    return choice_MC, weight_MC


# Each is the other's derivative. jax's own of a lookup is a scatter, which sums in no fixed order
# on GPUs and is slow on TPUs.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def spread(x_MD: jax.Array, order_R: jax.Array, place_R: jax.Array, times: int) -> jax.Array:
    """Every row `times` times, sorted; [R, D].

    order_R: which of the repeated rows stands where; place_R, its inverse: where a row stands.
    """
    return x_MD[order_R // times]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def summed(y_RD: jax.Array, order_R: jax.Array, place_R: jax.Array, times: int) -> jax.Array:
    """Sorted rows back in place, the `times` that belong together summed; [M, D]."""
    return y_RD[place_R].reshape(-1, times, y_RD.shape[-1]).sum(1)


Rows = tuple[jax.Array, jax.Array]


def _spread_forward(
    x_MD: jax.Array, order_R: jax.Array, place_R: jax.Array, times: int
) -> tuple[jax.Array, Rows]:
    return spread(x_MD, order_R, place_R, times), (order_R, place_R)


def _spread_backward(times: int, rows: Rows, d_RD: jax.Array) -> tuple[jax.Array, None, None]:
    return summed(d_RD, *rows, times), None, None


def _summed_forward(
    y_RD: jax.Array, order_R: jax.Array, place_R: jax.Array, times: int
) -> tuple[jax.Array, Rows]:
    return summed(y_RD, order_R, place_R, times), (order_R, place_R)


def _summed_backward(times: int, rows: Rows, d_MD: jax.Array) -> tuple[jax.Array, None, None]:
    return spread(d_MD, *rows, times), None, None


spread.defvjp(_spread_forward, _spread_backward)
summed.defvjp(_summed_forward, _summed_backward)
