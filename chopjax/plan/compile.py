"""The real training step through the real compiler, for devices that are not there.

libtpu compiles for any slice on any machine. It optimizes, partitions and schedules the program and
lays out a chip's memory in seconds; generating machine code from that then takes minutes, and no
number of a plan but the code's own size comes from there. So a compilation runs in a process of its
own, whose dump is read as soon as memory is laid out, and which is ended there unless machine code
is asked for. The depth of the model and the number of chips change none of this.

jax's compiler for CUDA does the same for GPUs, and ends by itself: where there is no CUDA to make
machine code with, it leaves that out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from chopjax import interrupts
from chopjax.compilation import grouped_products, options_refused
from chopjax.errors import UserError
from chopjax.models.config import ModelConfig
from chopjax.models.mesh import make_mesh
from chopjax.plan import hlo
from chopjax.plan.gpu_kernels import work_space
from chopjax.plan.gpus import Cluster, answer_for_the_gpu
from chopjax.plan.topology import AnyTopology, devices, prepare_environment
from chopjax.train.compiler_options import read_options
from chopjax.train.optimizer import make_optimizer
from chopjax.train.settings import Settings
from chopjax.train.step import State, abstract_batch, abstract_state, make_train_step
from chopjax.train.task import Task, task_of
from chopjax.train.teacher import Teacher

CODE_RESERVE = 256 * 2**20  # bytes held back for machine code that was not generated
POLL_SECONDS = 0.1
# The compiler's dumps, in the order in which it writes them.
LAYOUT, REPORT = "after_optimizations-buffer-assignment", "after_optimizations-memory-usage-report"
PROGRAM, LAID_OUT = "after_optimizations", "after_optimizations_after_buffer_assignment"


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip, as the compiler laid them out."""

    arguments: int  # state, batch, and what is frozen
    new_outputs: int  # outputs that do not take an argument's place: metrics
    temporaries: int  # gradients, activations, gathered parameters, everything else
    code: int  # CODE_RESERVE where none was generated; of GPUs, with what libraries work in

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


def abstract_inputs(
    task: Task, settings: Settings, mesh: Mesh
) -> tuple[State, dict[str, jax.ShapeDtypeStruct]]:
    """State and batch of a task's step: shapes, dtypes and shardings. A mesh without devices will
    do."""
    optimizer = make_optimizer(settings.optimizer, settings.total_steps)
    state = abstract_state(task.trainable, optimizer, settings, mesh)
    return state, abstract_batch(settings, mesh)


def bytes_per_chip(tree: Any) -> int:
    """Of a tree of ShapeDtypeStructs with shardings, without padding."""

    def size(leaf: jax.ShapeDtypeStruct) -> int:
        total: int = leaf.dtype.itemsize
        for side in leaf.sharding.shard_shape(leaf.shape):
            total *= side
        return total

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))


class Compilation:
    """The training step that chopjax/train would run on this slice, being compiled.

    Starts at once, in a process of its own; several may run beside each other. `close` ends it.
    """

    def __init__(
        self,
        model: ModelConfig,
        settings: Settings,
        topology: AnyTopology,
        machine_code: bool,
        teacher: Teacher | None = None,
    ):
        self.limit, self.machine_code = topology.chip.usable_hbm, machine_code
        self.for_gpus = isinstance(topology, Cluster)
        self.begun = time.monotonic()
        self.folder = tempfile.TemporaryDirectory(prefix="chopjax-plan-")
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(self.folder)
        self._stack.enter_context(interrupts.at_end(self.folder.cleanup))
        context = multiprocessing.get_context("spawn")
        self.answers, answers = context.Pipe(duplex=False)
        arguments = (model, teacher, settings, topology, self.folder.name, answers)
        self.process = context.Process(target=_compile, args=arguments, daemon=True)
        self._stack.enter_context(interrupts.running(self.process))
        answers.close()  # so that the end of the process is the end of the pipe

    def result(self) -> Compiled | TooLarge:
        """Waits. Raises UserError where the compiler fails for another reason than memory."""
        while not self.answers.poll(POLL_SECONDS):
            interrupts.check()
            if not (self.machine_code or self.for_gpus) and self._dumped(LAID_OUT):
                arguments, outputs, temporaries = _layout(self._read(LAYOUT))
                memory = Memory(arguments, outputs, temporaries, CODE_RESERVE)
                # The compiler dumps a program that is too large, too, and then refuses it.
                if memory.total <= self.limit:
                    return self._compiled(memory)
        seconds = time.monotonic() - self.begun
        try:
            answer = self.answers.recv()
        except EOFError:
            self.process.join()
            raise UserError(
                f"the compiler ended without a message (exit code {self.process.exitcode}); it "
                "needs 2 to 4 GB of this machine's memory"
            ) from None
        if isinstance(answer, Memory):
            return self._compiled(answer)
        if "RESOURCE_EXHAUSTED" in answer:
            return _refusal(answer, seconds)
        refused = options_refused(answer)
        raise UserError(refused or f"the compiler: {answer.splitlines()[0]}")

    def close(self) -> None:
        self._stack.close()

    def _compiled(self, memory: Memory) -> Compiled:
        seconds = time.monotonic() - self.begun
        generated = memory.code != CODE_RESERVE and not self.for_gpus
        program = hlo.parse(self._read(PROGRAM))
        if self.for_gpus:
            largest = max(work_space(each) for _, each, _ in program.instructions())
            memory = dataclasses.replace(memory, code=CODE_RESERVE + largest)
        return Compiled(memory, _largest(self._read(REPORT)), program, generated, seconds)

    def _dumped(self, which: str) -> list[Path]:
        """Dumps of the step itself; helper programs have dumps of their own, smaller ones."""
        before = "_gpu_" if self.for_gpus else "."
        dumps = Path(self.folder.name).glob(f"*train_step*{before}{which}.txt")
        return sorted(dumps, key=lambda path: path.stat().st_size)

    def _read(self, which: str) -> str:
        return self._dumped(which)[-1].read_text()


def _compile(
    model: ModelConfig,
    teacher: Teacher | None,
    settings: Settings,
    topology: AnyTopology,
    folder: str,
    answers: multiprocessing.connection.Connection,
) -> None:
    """The other process: sends the memory of the compiled step, or what the compiler said."""
    threading.Thread(target=die_with_parent, args=(folder,), daemon=True).start()
    # What a user asks of XLA elsewhere: libtpu ends the process over a flag that it does not know.
    # Its own flags are in LIBTPU_INIT_ARGS.
    os.environ.pop("XLA_FLAGS", None)
    prepare_environment()
    if isinstance(topology, Cluster):
        answer_for_the_gpu()
    sizes = settings.mesh
    where = devices(topology)
    mesh = make_mesh(sizes.data, sizes.fsdp, sizes.tensor, sizes.slices, devices=where)
    task = task_of(model, settings, mesh, teacher)
    state, batch = abstract_inputs(task, settings, mesh)
    optimizer = make_optimizer(settings.optimizer, settings.total_steps)
    # Everything is read from the compiler's dump: jax may be unable to read the program of a newer
    # libtpu back.
    options: Any = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
    try:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            step = make_train_step(task.objective, optimizer, settings, state, task.frozen, mesh)
            lowered = step.lower(state, task.frozen, batch)
            options |= grouped_products(lowered) | read_options(settings.compute.compiler_options)
            stats: Any = lowered.compile(compiler_options=options).memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        answers.send(str(error))
        return
    new_outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    answers.send(
        Memory(
            stats.argument_size_in_bytes,
            new_outputs,
            stats.temp_size_in_bytes,
            stats.generated_code_size_in_bytes,
        )
    )


def die_with_parent(folder: str) -> None:
    """A thread of the other process: who waits for it may be killed, and nobody would close it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


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


def _refusal(message: str, seconds: float) -> TooLarge:
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    match = re.search(r"temporaries \(([\d.]+)([KMGT])\)|Used ([\d.]+)([KMGT]) of", message)
    temporaries = None
    if match and match[1]:
        temporaries = int(float(match[1]) * units[match[2]])
    return TooLarge(temporaries, message.splitlines()[0], seconds)
