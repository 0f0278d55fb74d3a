"""Memory that a compilation leaves behind, and what the compiler is told."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from chopjax.compilation import compiled
from chopjax.errors import UserError

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


def test_options_reach_the_compiler(tmp_path: Path) -> None:
    lowered = jax.jit(jnp.sin).lower(jnp.ones(3))
    program = compiled(lowered, {"xla_dump_to": str(tmp_path), "xla_dump_hlo_as_text": True})
    assert program(jnp.zeros(3)).tolist() == [0, 0, 0]
    assert list(tmp_path.glob("*after_optimizations.txt"))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("xla_nonsense", True, "No such compile option: 'xla_nonsense'"),
        ("xla_cpu_enable_fast_math", "perhaps", "'perhaps' is not a valid bool value"),
    ],
)
def test_what_the_compiler_says_of_options(name: str, value: object, reason: str) -> None:
    lowered = jax.jit(jnp.sin).lower(jnp.ones(3))
    with pytest.raises(UserError, match=rf"^compute\.compiler_options: .*{reason}"):
        compiled(lowered, {name: value})
