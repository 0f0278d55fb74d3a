"""Room on a disk. No jax."""

from __future__ import annotations

import shutil
from pathlib import Path


def free_bytes(folder: Path) -> int | None:
    """None where the file system does not say."""
    usage = shutil.disk_usage(folder)
    return usage.free if usage.total else None
