"""What the devices here could do at best: the denominator of MFU."""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp

# Dense bfloat16 matrix products with float32 sums, FLOP/s a jax device, from the makers' data
# sheets. Matched against the start of jax's device_kind, longest first. A TPU v2 or v3 device is
# one core of two.
PEAK_BFLOAT16 = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v4 lite": 138e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}
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
