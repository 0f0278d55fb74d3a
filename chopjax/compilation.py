"""Compiling without holding on to the compiler's memory."""

from __future__ import annotations

import ctypes

import jax

from chopjax import interrupts
from chopjax.errors import UserError
from chopjax.hardware import memory_bytes


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


def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """The program; what making it took goes back to the system.

    glibc keeps memory that is freed: after a training step some 200 MB, for as long as the process
    lives. Other C libraries see to it by themselves.
    Raises UserError where the program needs more memory than this machine has.
    """
    interrupts.check()
    program = lowered.compile()
    _check_memory(program)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return program
