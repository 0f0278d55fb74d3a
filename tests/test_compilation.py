"""Memory that a compilation leaves behind."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

SCRIPT = """
import jax, jax.numpy as jnp
from chopjax.compilation import compiled

def resident():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024

def deep(x):
    for n in range(400):
        x = jnp.sort(jnp.tanh(x @ x.T)[:, ::-1] + n, axis=0)
    return x

lowered = jax.jit(deep).lower(jnp.ones((8, 8)))
lowered.compile()
kept = resident()
program = compiled(lowered)
print(kept, resident(), bool(jnp.isfinite(program(jnp.ones((8, 8)))).all()))
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc, which keeps freed memory"
)
def test_the_compilers_memory_goes_back() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    kept, left, works = done.stdout.split()
    assert float(left) < float(kept), "MB resident after the second compilation"
    assert works == "True"
