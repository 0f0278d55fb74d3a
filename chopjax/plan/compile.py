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
import multiprocessing
import multiprocessing.connection
import os
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
from chopjax.plan.dump import Compiled, Dump, Memory, TooLarge, too_large
from chopjax.plan.gpus import Cluster, answer_for_the_gpu
from chopjax.plan.topology import AnyTopology, devices, prepare_environment
from chopjax.train.compiler_options import read_options
from chopjax.train.optimizer import make_optimizer
from chopjax.train.settings import Settings
from chopjax.train.step import State, abstract_batch, abstract_state, make_train_step
from chopjax.train.task import Task, task_of
from chopjax.train.teacher import Teacher

POLL_SECONDS = 0.1


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
        unrolled = model.num_layers if settings.compute.layers == "unrolled" else 1
        self.dump = Dump(Path(self.folder.name), self.for_gpus, unrolled)
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
            memory = None
            if not (self.machine_code or self.for_gpus):
                memory = self.dump.memory()
            if memory is not None and memory.total <= self.limit:
                return self.dump.compiled(memory, time.monotonic() - self.begun)
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
            return self.dump.compiled(answer, seconds)
        if refusal := too_large(answer, seconds):
            return refusal
        refused = options_refused(answer)
        raise UserError(refused or f"the compiler: {answer.splitlines()[0]}")

    def close(self) -> None:
        self._stack.close()


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
    options: Any = Dump(Path(folder)).options
    try:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            step = make_train_step(
                task.objective, optimizer, settings, state, task.frozen, mesh, task.matrices
            )
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
