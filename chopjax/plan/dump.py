"""What the TPU compiler writes into a folder while it compiles: a program, optimized and scheduled,
and a chip's memory as it is laid out.

It does so for whoever asks it to, whichever library and version of jax the program comes from.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from chopjax.plan import hlo
from chopjax.plan.gpu_kernels import work_space

CODE_RESERVE = 256 * 2**20  # bytes held back for machine code that was not generated,
CODE_OF_A_LAYER = 16 * 2**20  # or so many for each unrolled layer; one of 7B's has 15.4 MiB on v5p
# The compiler's dumps, in the order in which it writes them.
LAYOUT, REPORT = "after_optimizations-buffer-assignment", "after_optimizations-memory-usage-report"
PROGRAM, LAID_OUT = "after_optimizations", "after_optimizations_after_buffer_assignment"


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip, as the compiler laid them out."""

    arguments: int  # state, batch, and what is frozen
    new_outputs: int  # outputs that do not take an argument's place: metrics
    temporaries: int  # gradients, activations, gathered parameters, everything else
    code: int  # the reserve where none was generated; of GPUs, with what libraries work in

    @property
    def total(self) -> int:
        return self.arguments + self.new_outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Compiled:
    memory: Memory
    largest: list[tuple[int, str]]  # the largest temporaries: bytes, shapes
    program: hlo.Program
    machine_code: bool  # whether it was generated
    seconds: float  # that compiling took


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """The compiler refused: the program does not fit."""

    temporaries: int | None  # bytes that it wanted besides state and batch, where it said so
    message: str
    seconds: float


class Dump:
    """The folder of the dumps of one training step, which is compiled under a name with
    `train_step` in it. options: what the compiler must be told, as jax takes it. for_gpus: jax's
    compiler for CUDA names its files otherwise. unrolled: how many layers the program spells out.
    """

    def __init__(self, folder: Path, for_gpus: bool = False, unrolled: int = 1):
        self.folder, self.for_gpus = folder, for_gpus
        self.reserve = max(CODE_RESERVE, CODE_OF_A_LAYER * unrolled)
        self.options = {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True}

    def memory(self) -> Memory | None:
        """As laid out, without machine code; None before that. The compiler dumps a program that
        is too large, too, and then refuses it."""
        if not self._files(LAID_OUT):
            return None
        return Memory(*_layout(self._read(LAYOUT)), code=self.reserve)

    def compiled(self, memory: Memory, seconds: float) -> Compiled:
        generated = memory.code != self.reserve and not self.for_gpus
        program = hlo.parse(self._read(PROGRAM))
        if self.for_gpus:
            largest = max(work_space(each) for _, each, _ in program.instructions())
            memory = dataclasses.replace(memory, code=self.reserve + largest)
        return Compiled(memory, _largest(self._read(REPORT)), program, generated, seconds)

    def _files(self, which: str) -> list[Path]:
        """Dumps of the step itself; helper programs have dumps of their own, smaller ones."""
        before = "_gpu_" if self.for_gpus else "."
        dumps = self.folder.glob(f"*train_step*{before}{which}.txt")
        return sorted(dumps, key=lambda path: path.stat().st_size)

    def _read(self, which: str) -> str:
        return self._files(which)[-1].read_text()


def too_large(message: str, seconds: float) -> TooLarge | None:
    """What the compiler said, where it says that a program does not fit."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    message = message[message.index("RESOURCE_EXHAUSTED") :]
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    match = re.search(r"temporaries \(([\d.]+)([KMGT])\)|Used ([\d.]+)([KMGT]) of", message)
    temporaries = None
    if match and match[1]:
        temporaries = int(float(match[1]) * units[match[2]])
    return TooLarge(temporaries, message.splitlines()[0], seconds)


def _layout(text: str) -> tuple[int, int, int]:
    """Bytes of arguments, new outputs and temporaries, from the dump of the buffer assignment."""
    arguments = outputs = temporaries = 0
    for size, words in re.findall(r"^allocation \d+: size (\d+), (.*)", text, re.MULTILINE):
        # HBM is color 0, which is not written. What a fusion uses within itself is thread-local.
        if "color" in words or "thread-local" in words or "constant" in words:
            continue
        if "parameter" in words:
            arguments += int(size)
        elif "preallocated-temp" in words:
            temporaries += int(size)
        else:
            outputs += int(size)
    return arguments, outputs, temporaries


def _largest(report: str, count: int = 5) -> list[tuple[int, str]]:
    units = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    rows = re.findall(r"\);\s*([\d.]+)(B|KiB|MiB|GiB);\s*\d+;\s*\d+; (.*)", report)
    sized = [(round(float(number) * units[unit]), shapes) for number, unit, shapes in rows]
    return sorted(sized, key=lambda row: -row[0])[:count]
