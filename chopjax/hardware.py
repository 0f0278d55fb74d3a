"""Which accelerators this machine has, found out without jax."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from pathlib import Path

GOOGLE_PCI_VENDOR = "0x1ae0"
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


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
