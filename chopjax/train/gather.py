"""compute.gather=step: what fsdp has in parts, whole on every device once a step.

As parameters are in ZeRO's second stage (arXiv 1910.02054, section 5), where the state stays in
parts. Otherwise every layer is gathered when it is computed, forwards and backwards, in each of the
parts that a batch is worked off in (microbatches). Gradients go back to where their parameters lie
after each part, so that they take no more room than before.
"""

from __future__ import annotations

from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from chopjax.models.parameters import KERNELS, Params


def gathered(params: Params, where: Any, dtype: Any) -> Params:
    """The blocks' kernels in the type of the products, over no axis but tensor's.

    where: the shardings of params. All else, norms, biases, tables, routers, stays as it is.
    """
    flat, places = flatten_dict(params), flatten_dict(where)
    for path, leaf in flat.items():
        if path[0] == "blocks" and path[-1] in KERNELS:
            place = places[path]
            spec = PartitionSpec(*(None if axis == "fsdp" else axis for axis in place.spec))
            whole = NamedSharding(place.mesh, spec)
            flat[path] = jax.lax.with_sharding_constraint(leaf.astype(dtype), whole)
    found: Params = unflatten_dict(flat)
    return found
