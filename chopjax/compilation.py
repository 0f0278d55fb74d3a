"""Compiling without holding on to the compiler's memory."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from typing import Any

import jax

from chopjax import interrupts
from chopjax.errors import UserError, first_line
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


def options_refused(message: str) -> str | None:
    """What to tell a user of options that XLA does not know or take, if its message is of that."""
    reason = re.search(r"No such compile option.*|While setting option.*", message)
    return f"compute.compiler_options: {reason[0]}" if reason else None


def compiled(
    lowered: jax.stages.Lowered, options: Mapping[str, Any] | None = None
) -> jax.stages.Compiled:
    """The program; what making it took goes back to the system.

    options: the user's, for the compiler.
    glibc keeps memory that is freed: after a training step some 200 MB, for as long as the process
    lives. Other C libraries see to it by themselves.
    Raises UserError where the program needs more memory than this machine has, and where the
    compiler refuses an option.
    """
    interrupts.check()
    own = grouped_products(lowered) if jax.default_backend() == "tpu" else {}
    try:
        program = lowered.compile(compiler_options={**own, **(options or {})} or None)
    except jax.errors.JaxRuntimeError as error:
        if options and (refused := options_refused(first_line(error))):
            raise UserError(refused) from error
        raise
    _check_memory(program)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return program
