"""The real training step through the real compiler, for devices that are not there.

libtpu compiles for any slice on any machine. What comes back: the compiler's own account of a
chip's memory, or its refusal, and the optimized program. Compiling takes about a minute of a
processor for a 7B model, whatever the depth and the number of chips.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from chopjax.models.config import ModelConfig
from chopjax.plan import hlo
from chopjax.train.mesh import batch_sharding
from chopjax.train.optimizer import make_optimizer
from chopjax.train.settings import Settings
from chopjax.train.step import State, abstract_state, make_train_step

BATCH_DTYPES = {
    "tokens": jnp.int32,
    "targets": jnp.int32,
    "segments": jnp.int32,
    "positions": jnp.int32,
    "weights": jnp.float32,
}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip, as the compiler laid them out."""

    arguments: int  # state and batch
    new_outputs: int  # outputs that do not take an argument's place: metrics
    temporaries: int  # gradients, activations, gathered parameters, everything else
    code: int

    @property
    def total(self) -> int:
        return self.arguments + self.new_outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Compiled:
    memory: Memory
    largest: list[tuple[int, str]]  # the largest temporaries: bytes, shapes
    program: hlo.Program
    seconds: float  # that compiling took


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """The compiler refused: the program does not fit."""

    temporaries: int | None  # bytes that it wanted besides state and batch, where it said so
    message: str
    seconds: float


def abstract_inputs(
    model: ModelConfig, settings: Settings, mesh: Mesh
) -> tuple[State, dict[str, jax.ShapeDtypeStruct]]:
    """State and batch of a step: shapes, dtypes and shardings. A mesh without devices will do."""
    optimizer = make_optimizer(settings.optimizer, model, settings.total_steps)
    rows = batch_sharding(mesh)
    shape = (settings.data.batch_size, settings.data.sequence_length)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
        for name, dtype in BATCH_DTYPES.items()
    }
    return abstract_state(model, optimizer, settings, mesh), batch


def bytes_per_chip(tree: Any) -> int:
    """Of a tree of ShapeDtypeStructs with shardings, without padding."""

    def size(leaf: jax.ShapeDtypeStruct) -> int:
        count = 1
        for side in leaf.sharding.shard_shape(leaf.shape):
            count *= side
        return count * leaf.dtype.itemsize

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))


def compile_step(model: ModelConfig, settings: Settings, mesh: Mesh) -> Compiled | TooLarge:
    """Lower and compile the training step that chopjax/train would run on this mesh."""
    state, batch = abstract_inputs(model, settings, mesh)
    optimizer = make_optimizer(settings.optimizer, model, settings.total_steps)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chopjax-plan-") as folder:
        # The text of the program comes through the compiler's dump: jax may be unable to read the
        # program of a newer libtpu back.
        options: Any = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            lowered = make_train_step(model, optimizer, settings, mesh).lower(state, batch)
            try:
                compiled = lowered.compile(compiler_options=options)
            except Exception as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                return _refusal(str(error), time.monotonic() - begun)
        stats: Any = compiled.memory_analysis()
        return Compiled(
            Memory(
                stats.argument_size_in_bytes,
                stats.output_size_in_bytes - stats.alias_size_in_bytes,
                stats.temp_size_in_bytes,
                stats.generated_code_size_in_bytes,
            ),
            _largest(_dumped(folder, "memory-usage-report")),
            hlo.parse(_dumped(folder, "after_optimizations")),
            time.monotonic() - begun,
        )


def _dumped(folder: str, which: str) -> str:
    """The dump of the step itself; helper programs have dumps of their own, much smaller ones."""
    found = Path(folder).glob(f"*train_step*{which}.txt")
    return max(found, key=lambda path: path.stat().st_size).read_text()


def _largest(report: str, count: int = 5) -> list[tuple[int, str]]:
    units = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    rows = re.findall(r"\);\s*([\d.]+)(B|KiB|MiB|GiB);\s*\d+;\s*\d+; (.*)", report)
    sized = [(round(float(number) * units[unit]), shapes) for number, unit, shapes in rows]
    return sorted(sized, key=lambda row: -row[0])[:count]


def _refusal(message: str, seconds: float) -> TooLarge:
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    found = re.search(r"temporaries \(([\d.]+)([KMGT])\)|Used ([\d.]+)([KMGT]) of", message)
    temporaries = None
    if found and found[1]:
        temporaries = int(float(found[1]) * units[found[2]])
    return TooLarge(temporaries, message.splitlines()[0], seconds)
