"""A training run on a pod that is not there: does it fit, what does it move, how long will it take.

A run that chops in its course has two phases, with all layers and with those that stay; each is
compiled and must fit.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh
from ml_collections import ConfigDict

from chopjax.checkpoint.describe import describe, local_config, local_provenance
from chopjax.checkpoint.published import CONFIGS
from chopjax.errors import UserError
from chopjax.models import families, parameters
from chopjax.models import mesh as meshes
from chopjax.models.attention import choose as choose_attention
from chopjax.models.attention import why_not
from chopjax.models.chunks import chunk_of
from chopjax.models.config import ModelConfig
from chopjax.models.scores import all_scores
from chopjax.plan.chip_memory import Parts, activations, knobs, teaching
from chopjax.plan.collectives import collect, one_collective
from chopjax.plan.compile import Compilation, abstract_inputs, bytes_per_chip
from chopjax.plan.dump import Compiled, TooLarge
from chopjax.plan.gpus import ASSUMPTIONS as GPU_ASSUMPTIONS
from chopjax.plan.gpus import Cluster
from chopjax.plan.hlo import Instruction, Program
from chopjax.plan.roofline import (
    ASSUMPTIONS,
    estimate,
    executed_flops_per_token,
    tile_share,
    torus_dimensions,
)
from chopjax.plan.schedule import operation, work
from chopjax.plan.streams import hidden_shares
from chopjax.plan.topology import AnyTopology, devices
from chopjax.progress import say
from chopjax.train.origin import Origin, find_origin
from chopjax.train.settings import Settings, default_config, read
from chopjax.train.task import Task, formula_of, task_of
from chopjax.train.teacher import Teacher, lay_beside, place_of

SECONDS_A_DAY = 86400
KNOBS_COMPILED = 4  # at most, in search of one that fits
TIMES = ("step_seconds", "mfu", "tokens_per_second", "seconds")  # of a phase


class Phase(NamedTuple):
    """Steps of a run that are one program."""

    name: str
    model: ModelConfig
    settings: Settings  # that hold in it
    group: str  # where those of its own stand: compute, or compute.after_chop
    steps: int


def settings_of(config: ConfigDict) -> tuple[Settings, Origin, Teacher | None]:
    """The training settings of a recipe for `chopjax train` or `chopjax run`, its model and its
    teacher.

    Of a model on this machine config.json is enough, of those in published.py nothing is needed;
    token stores need not exist.
    """
    config = _training_part(config)
    config.data.train = config.data.train or "not needed to plan"
    if config.scratch:
        config.tokenizer = config.tokenizer or "not needed to plan"
    settings = read(config)
    model = settings.model
    raw_config = CONFIGS.get(model)
    if model and raw_config is None:
        raw_config = local_config(model)
    if raw_config is not None:
        settings = dataclasses.replace(settings, model="", scratch=raw_config, from_scratch=False)
    origin = find_origin(settings)[0]
    teacher = None
    if settings.teacher.model:
        teacher = _teacher(dataclasses.replace(settings, model=model), origin)
    return settings, origin, teacher


def _teacher(settings: Settings, origin: Origin) -> Teacher:
    """By its configuration alone, as the model is."""
    provenance = local_provenance(settings.model) if settings.model else None
    name, revision = place_of(settings, provenance)
    raw_config = CONFIGS.get(name) or local_config(name)
    if raw_config is None:
        raw_config = describe(name, revision).raw_config
    depth = families.translate(raw_config)[1].num_layers
    layers = lay_beside(settings.teacher, origin, provenance, name, depth)
    return Teacher(name, revision, raw_config, *layers, fingerprint={})


def _training_part(config: ConfigDict) -> ConfigDict:
    if "heal" not in config:
        return ConfigDict(config.to_dict())
    base = default_config().unlock()
    base.update(config.heal.to_dict())
    base.model = config.model
    # Of how a pipeline chooses layers, what a training run knows too.
    base.chop.update({name: config.chop[name] for name in base.chop if name in config.chop})
    return base


def make_plan(
    settings: Settings,
    origin: Origin,
    topology: AnyTopology,
    tokens: float | None = None,
    machine_code: bool = False,
    teacher: Teacher | None = None,
) -> dict[str, Any]:
    """Everything that `chopjax plan` prints, as plain values.

    What does not fit has no times: they, MFU and what follows from them are None then.

    tokens: the budget, where it is not that of the settings. machine_code: whether the compiler
    goes on to the end.
    """
    budget = tokens or settings.total_steps * _tokens_a_step(settings)
    steps = round(budget / _tokens_a_step(settings))
    settings, mesh, why_not, run = outline(settings, origin, topology, steps)
    steps_compiled = _compile(run, topology, mesh, machine_code, teacher)
    phases = [
        _phase(phase, teacher, topology, mesh, compiled)
        for phase, compiled in zip(run, steps_compiled, strict=True)
    ]
    fits = all(phase["fits"] for phase in phases)
    if not fits:
        phases = [phase | dict.fromkeys(TIMES) for phase in phases]
    seconds = sum(phase["step_seconds"] * phase["steps"] for phase in phases) if fits else None
    return {
        "topology": topology.name,
        "accelerator_type": topology.accelerator_type,
        "chips": topology.chips,
        "chip": dataclasses.asdict(topology.chip),
        "mesh": dict(mesh.shape),
        "attention": settings.compute.attention,
        "compiled": why_not is None,
        "not_compiled_because": why_not,
        "fits": fits,
        "phases": phases,
        "tokens_per_day": phases[-1]["tokens_per_second"] * SECONDS_A_DAY if fits else None,
        "token_budget": budget,
        "days": None if seconds is None else seconds / SECONDS_A_DAY,
        "chip_hours": None if seconds is None else seconds / 3600 * topology.chips,
        "flops_formula": formula_of(settings),
        "assumptions": list(GPU_ASSUMPTIONS if isinstance(topology, Cluster) else ASSUMPTIONS),
    }


def outline(
    settings: Settings, origin: Origin, topology: AnyTopology, steps: int
) -> tuple[Settings, Any, str | None, list[Phase]]:
    """The settings as they will be there, the mesh, why it has no devices, and the phases of so
    many steps. Raises UserError for what the mesh cannot split."""
    mesh, why_not = _mesh(settings, topology)
    backend = "gpu" if isinstance(topology, Cluster) else "tpu"
    settings = _with_chunk(_with_its_attention(settings, origin.config_at(0), backend))
    phases = phases_of(settings, origin, steps)
    for phase in phases:
        meshes.specs(phase.model, mesh.shape)
        _check_sizes(phase.settings, origin, mesh, backend)
    return settings, mesh, why_not, phases


def measure(
    phase: Phase, topology: AnyTopology, mesh: Any, teacher: Teacher | None
) -> dict[str, Any]:
    """A phase compiled alone, as `chopjax plan` has it, without advice for what does not fit."""
    running = Compilation(phase.model, phase.settings, topology, False, teacher)
    with contextlib.closing(running):
        return _phase(phase, teacher, topology, mesh, running.result(), advice=False)


def phases_of(settings: Settings, origin: Origin, steps: int) -> list[Phase]:
    """Of a run of so many steps: those with all layers, and those after the chop."""
    first = min(origin.chop_after, steps) if origin.keep is not None else 0
    group = "compute.after_chop" if first or settings.compute.after_chop.given() else "compute"
    phases = []
    if first:
        model, own = origin.config_at(0), origin.settings_at(settings, 0)
        phases.append(Phase("all layers", model, own, "compute", first))
    if steps > first:
        name = "after the chop" if first else "training"
        model, own = origin.config_at(first), origin.settings_at(settings, first)
        phases.append(Phase(name, model, own, group, steps - first))
    return phases


def _tokens_a_step(settings: Settings) -> int:
    return settings.data.batch_size * settings.data.sequence_length


def _with_its_attention(settings: Settings, config: ModelConfig, backend: str) -> Settings:
    """What "auto" will mean there; here it would mean this machine."""
    compute = settings.compute
    if compute.attention != "auto":
        return settings
    length, dtype = settings.data.sequence_length, jax.numpy.dtype(compute.dtype)
    scores = all_scores(config)
    chosen, reason = choose_attention(length, dtype, config.head_dim, scores, backend)
    if reason:
        say(f"attention: {chosen} ({reason})")
    attention: Any = chosen
    return dataclasses.replace(settings, compute=dataclasses.replace(compute, attention=attention))


def _with_chunk(settings: Settings) -> Settings:
    """What 0 will mean there."""
    chunk = chunk_of(settings.compute.loss_chunk, "accelerator")
    compute = dataclasses.replace(settings.compute, loss_chunk=chunk)
    return dataclasses.replace(settings, compute=compute)


def _mesh(settings: Settings, topology: AnyTopology) -> tuple[Any, str | None]:
    """The mesh of the run, or one without devices and why the compiler is not there."""
    sizes = settings.mesh
    asked = (sizes.data, sizes.fsdp, sizes.tensor, sizes.slices)
    try:
        return meshes.make_mesh(*asked, devices=devices(topology)), None
    except ModuleNotFoundError:
        shape = meshes.resolve_sizes(topology.chips, *asked)
        types = (AxisType.Auto,) * len(meshes.AXES)
        mesh = AbstractMesh(tuple(shape.values()), tuple(shape), axis_types=types)
        return mesh, "libtpu is not installed (pip install 'chopjax[tpu]'): arithmetic alone"


def _compile(
    phases: list[Phase],
    topology: AnyTopology,
    mesh: Any,
    machine_code: bool,
    teacher: Teacher | None,
) -> list[Compiled | TooLarge | None]:
    """The step of each phase, compiled beside each other; None without a compiler."""
    if not isinstance(mesh, Mesh):
        return [None] * len(phases)
    layers = " and ".join(str(phase.model.num_layers) for phase in phases)
    say(f"compiling the step for {layers} layers on {topology.name}")
    running = []
    try:
        for phase in phases:
            run = phase.model, phase.settings, topology, machine_code, teacher
            running.append(Compilation(*run))
        compiled: list[Compiled | TooLarge | None] = [one.result() for one in running]
    finally:
        for one in running:
            one.close()
    say(f"compiled in {max(one.seconds for one in compiled if one):.0f} s")
    return compiled


def _phase(
    phase: Phase,
    teacher: Teacher | None,
    topology: AnyTopology,
    mesh: Any,
    compiled: Compiled | TooLarge | None,
    advice: bool = True,
) -> dict[str, Any]:
    """Memory, collectives and time of a phase's step."""
    model, settings = phase.model, phase.settings
    task = task_of(model, settings, mesh, teacher)
    parts = _parts(model, task, teacher, settings, mesh, compiled)
    limit = topology.chip.usable_hbm
    # The compiler's verdict stands above the sum of our parts.
    fits = parts.total <= limit and not isinstance(compiled, TooLarge)
    result: dict[str, Any] = {
        "name": phase.name,
        "layers": model.num_layers,
        "parameters": parameters.count(model),
        "active_parameters": parameters.count(model, active=True),
        "steps": phase.steps,
        "fits": fits,
        "memory": dataclasses.asdict(parts) | {"total": parts.total, "limit": limit},
        "knobs": [] if fits or not advice else _knobs(parts, phase, teacher, topology, mesh),
        "refusal": compiled.message if isinstance(compiled, TooLarge) else None,
        "largest_temporaries": [],
        "collectives": [],
        "hbm_traffic": None,
        "unknown_loops": 0,
        "unknown_kernels": [],
        "compile_seconds": compiled.seconds if compiled else None,
        "machine_code": isinstance(compiled, Compiled) and compiled.machine_code,
        **_flops(model, task, settings, topology),
    }
    if isinstance(compiled, Compiled):
        share = tile_share(model, settings.data.sequence_length)
        if isinstance(topology, Cluster):
            beside, torus = _beside(compiled.program, topology, mesh.shape), None
        else:
            beside, torus = None, torus_dimensions(mesh)
        rows = collect(compiled.program, mesh.shape, beside)
        done = work(compiled.program, topology.chip, share)
        roofline = estimate(model, settings, topology, task.flops, done, rows, mesh.shape, torus)
        result["collectives"] = [dataclasses.asdict(row) for row in rows]
        result["executed_flops_per_step_and_chip"] = done.flops
        result["hbm_traffic"] = done.hbm_bytes
        result["unknown_kernels"] = done.unknown_kernels
        result["largest_temporaries"] = compiled.largest
        result["unknown_loops"] = compiled.program.unknown_loops
    else:
        roofline = estimate(model, settings, topology, task.flops)
    seconds = dataclasses.asdict(roofline)
    return result | {
        "step_seconds": seconds.pop("step"),
        "mfu": seconds.pop("mfu"),
        "tokens_per_second": seconds.pop("tokens_per_second"),
        "seconds": seconds,
    }


def _beside(
    program: Program, cluster: Cluster, mesh_shape: Mapping[str, int]
) -> dict[tuple[str, str], float]:
    """How much of each collective runs beside other work."""

    def operation_seconds(computation: str, instruction: Instruction) -> float:
        return operation(program, computation, instruction, cluster.chip, 1.0)[2]

    def collective(computation: str, instruction: Instruction) -> float:
        axes, _, wire = one_collective(instruction, mesh_shape)
        return cluster.seconds(wire, axes, mesh_shape)

    return hidden_shares(program, operation_seconds, collective)[0]


def _knobs(
    parts: Parts,
    phase: Phase,
    teacher: Teacher | None,
    topology: AnyTopology,
    mesh: Any,
) -> list[dict[str, Any]]:
    """What would make it fit: where there is a compiler, the first that it agrees to."""
    fitting = knobs(parts, topology.chip.usable_hbm, phase.model, phase.settings, mesh.shape)
    own = f"--config.{phase.group}."
    flags = [[f.replace("--config.compute.", own) for f in knob.flags] for knob in fitting]
    if not isinstance(mesh, Mesh):
        return [
            {"flags": named, "total": knob.total, "compiled": False}
            for named, knob in zip(flags, fitting, strict=True)
        ]
    for named, knob in list(zip(flags, fitting, strict=True))[:KNOBS_COMPILED]:
        say(f"compiling it with {' '.join(named)}")
        other = phase._replace(settings=knob.settings)
        (compiled,) = _compile([other], topology, mesh, False, teacher)
        if isinstance(compiled, Compiled) and compiled.memory.total <= topology.chip.usable_hbm:
            return [{"flags": named, "total": compiled.memory.total, "compiled": True}]
    return []


def _flops(
    model: ModelConfig, task: Task, settings: Settings, topology: AnyTopology
) -> dict[str, float]:
    a_token = task.flops
    executed = executed_flops_per_token(model, settings, a_token)
    tokens = _tokens_a_step(settings)
    return {
        "flops_per_token": a_token,
        "flops_per_step": a_token * tokens,
        "flops_per_step_and_chip": a_token * tokens / topology.chips,
        "executed_flops_per_step_and_chip": executed * tokens / topology.chips,
    }


def _parts(
    model: ModelConfig,
    task: Task,
    teacher: Teacher | None,
    settings: Settings,
    mesh: Any,
    compiled: Compiled | TooLarge | None,
) -> Parts:
    state, batch = abstract_inputs(task, settings, mesh)
    frozen = bytes_per_chip(task.frozen)
    params = bytes_per_chip(state["params"])
    whole_state, whole_batch = bytes_per_chip(state), bytes_per_chip(batch)
    guess = activations(model, settings, mesh.shape)
    if teacher is not None:
        guess += teaching(teacher.config, model.num_layers, settings, mesh.shape)
    padding = 0
    if isinstance(compiled, Compiled):
        memory = compiled.memory
        # Gradients are among the compiler's temporaries; not all of them need exist at once.
        guess = max(memory.temporaries - params, 0)
        padding = memory.total - whole_state - whole_batch - frozen - params - guess
    elif isinstance(compiled, TooLarge) and compiled.temporaries is not None:
        guess = max(compiled.temporaries - params, 0)
    return Parts(
        parameters=params,
        frozen=frozen,
        optimizer=whole_state - params,
        gradients=params,
        batch=whole_batch,
        activations=guess,
        padding_and_code=padding,
        estimated=compiled is None,
    )


def _check_sizes(settings: Settings, origin: Origin, mesh: Any, backend: str) -> None:
    """What a training run would refuse at its start (train/loop.py)."""
    shards, parts = meshes.batch_shards(mesh), settings.compute.microbatches
    if settings.data.batch_size % (shards * parts):
        raise UserError(
            f"data.batch_size {settings.data.batch_size}: not a multiple of {shards} shards x "
            f"{parts} microbatches"
        )
    positions = origin.config_at(0).max_positions
    if settings.data.sequence_length > positions:
        raise UserError(
            f"data.sequence_length {settings.data.sequence_length}: the model has only {positions} "
            "positions"
        )
    dtype = jax.numpy.dtype(settings.compute.dtype)
    model, length = origin.config_at(0), settings.data.sequence_length
    reason = why_not(
        settings.compute.attention, length, dtype, model.head_dim, all_scores(model), backend
    )
    if reason:
        raise UserError(f"compute.attention: {reason}; auto chooses what can run")
