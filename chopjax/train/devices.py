"""What the devices here could do at best: the denominator of MFU."""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp

from chopjax.hardware import PEAK_BFLOAT16

_PROBE = 1024  # side of the matrices that an unknown device is measured with


def peak_flops(dtype: str) -> tuple[float, str]:
    """FLOP/s of one device here, and where the figure is from.

    Known accelerators: the table, for bfloat16 whatever the dtype, as everyone reports it. Others
    (processors) are measured: the best of a few matrix products in `dtype`.
    """
    kind = jax.devices()[0].device_kind
    known = [name for name in PEAK_BFLOAT16 if kind.startswith(name)]
    if known:
        name = max(known, key=len)
        return PEAK_BFLOAT16[name], f"{name}, bfloat16 peak of the data sheet"
    # All fake or real devices of one processor share it.
    local = len(jax.local_devices())
    return _measured(dtype) / local, f"{kind}, measured on {dtype} matrix products"


@functools.cache
def _measured(dtype: str) -> float:
    x = jnp.ones((_PROBE, _PROBE), dtype)
    product = jax.jit(lambda a, b: a @ b)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * _PROBE**3 / best
