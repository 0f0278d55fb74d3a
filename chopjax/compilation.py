"""Compiling without holding on to the compiler's memory."""

from __future__ import annotations

import ctypes

import jax

from chopjax import interrupts


def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """The program; what making it took goes back to the system.

    glibc keeps memory that is freed: after a training step some 200 MB, for as long as the process
    lives. Other C libraries see to it by themselves.
    """
    interrupts.check()
    program = lowered.compile()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return program
