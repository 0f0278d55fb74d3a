"""Compiling without holding on to the compiler's memory."""

from __future__ import annotations

import ctypes
from typing import Any

import jax

from chopjax import interrupts
from chopjax.errors import UserError
from chopjax.hardware import memory_bytes

KERNEL = "xla_tpu_enable_ragged_dot_kernel"


def _check_memory(program: jax.stages.Compiled) -> None:
    """Of accelerators the compiler sees to it; a host without memory would kill the process."""
    need = program.memory_analysis()
    if jax.default_backend() != "cpu" or need is None:
        return
    total = need.argument_size_in_bytes + need.output_size_in_bytes - need.alias_size_in_bytes
    total += need.temp_size_in_bytes
    if total > memory_bytes():
        raise UserError(
            f"the program needs {total:,} bytes of memory and this machine has "
            f"{memory_bytes():,}; take smaller batches or shorter sequences"
        )


def grouped_products(lowered: jax.stages.Lowered) -> dict[str, Any]:
    """What a TPU's compiler must be told of a program with grouped products (experts); nothing of
    any other.

    libtpu 0.0.52 has a kernel for them, which v4 and v5p take by themselves. For v5e and v6e it
    would multiply every row with every expert: eight times the FLOPs of a Mixtral, 64 of an OLMoE.
    """
    return {KERNEL: True} if "ragged_dot" in lowered.as_text() else {}


def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """The program; what making it took goes back to the system.

    glibc keeps memory that is freed: after a training step some 200 MB, for as long as the process
    lives. Other C libraries see to it by themselves.
    Raises UserError where the program needs more memory than this machine has.
    """
    interrupts.check()
    options = grouped_products(lowered) if jax.default_backend() == "tpu" else {}
    program = lowered.compile(compiler_options=options or None)
    _check_memory(program)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return program
