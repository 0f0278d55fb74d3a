"""Accelerators without jax: what each kind does at best, and which this machine has."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from pathlib import Path

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

GOOGLE_PCI_VENDOR = "0x1ae0"
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def processors() -> int:
    """Cores that this process may use; jax computes on as many threads."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Of the host, or what its container allows."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            limits.append(int(Path("/sys/fs/cgroup", name).read_text()))
    return min(limits)


def has_tpu() -> bool:
    """By the PCI bus, as jax looks for it."""
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    return any(vendor.read_text().strip() == GOOGLE_PCI_VENDOR for vendor in vendors)


def skip_absent_tpu() -> None:
    """Keep jax from starting libtpu on a machine without a TPU, before jax is imported.

    `chopjax plan` wants libtpu on such machines. Once started there it prints errors, and a
    profile of a training run would end in a crash. Where a GPU or a setting of the user's says
    something about the platform, it is left alone.
    """
    asked = any(name == "JAX_PLATFORMS" or name.startswith("TPU_") for name in os.environ)
    if asked or has_tpu() or any(Path(device).exists() for device in GPU_DEVICES):
        return
    if importlib.util.find_spec("libtpu") is not None:
        os.environ["JAX_PLATFORMS"] = "cpu"
