"""Training steps of chopjax and of MaxText, compiled for TPUs that are not there and read by one
reader. A part of tpu_compile.py."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from jax.sharding import Mesh

from chopjax import interrupts
from chopjax.errors import UserError
from chopjax.models import flops
from chopjax.models.config import ModelConfig
from chopjax.plan.collectives import collect
from chopjax.plan.compile import POLL_SECONDS, Compilation
from chopjax.plan.dump import Compiled, Dump, TooLarge, too_large
from chopjax.plan.plan import outline, settings_of
from chopjax.plan.roofline import estimate, tile_share, torus_dimensions
from chopjax.plan.schedule import work
from chopjax.plan.topology import Topology
from chopjax.train.config_file import load_config
from chopjax.train.settings import Settings

PEER_STEP = Path(__file__).with_name("maxtext_step.py")
PEER_MODELS = {
    "meta-llama/Llama-2-7b-hf": "llama2-7b",
    "meta-llama/Llama-2-13b-hf": "llama2-13b",
    "meta-llama/Llama-2-70b-hf": "llama2-70b",
}
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Job:
    """What both programs train, on what."""

    model_name: str  # on the hub
    model: ModelConfig
    settings: Settings  # of ours; batch and length are those of both
    topology: Topology
    mesh: Any  # of ours; without devices where there is no compiler


def job(recipe: Path, flags: Sequence[str], topology: Topology, all_layers: bool) -> Job:
    """flags: "data.batch_size=8", as load_config has them. all_layers: the steps before the
    chop."""
    config = load_config(recipe, flags)
    settings, origin, teacher = settings_of(config)
    if teacher is not None or settings.adapter.rank:
        raise UserError(f"--config {recipe}: a full training step without a teacher is compared")
    _, mesh, _, phases = outline(settings, origin, topology, settings.total_steps)
    phase = phases[0 if all_layers else -1]
    return Job(config.model, phase.model, phase.settings, topology, mesh)


def ours(asked: Job) -> Row:
    """Compiles chopjax's step. Raises UserError where there is no compiler."""
    if not isinstance(asked.mesh, Mesh):
        raise UserError("libtpu is not installed (pip install 'chopjax[tpu]')")
    with _cpu_seconds() as spent:
        compilation = Compilation(asked.model, asked.settings, asked.topology, False)
        with contextlib.closing(compilation):
            compiled = compilation.result()
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")}
    row = _read(asked, compiled, asked.mesh.shape, torus_dimensions(asked.mesh))
    return row | {"versions": versions, "compile_cpu_seconds": spent()}


def peers(
    asked: Job, python: Path, settings: Mapping[str, Any], options: Mapping[str, str]
) -> Row | None:
    """Compiles MaxText's step, in a process of its own environment. None where the batch cannot be
    split so.

    python: its interpreter. settings, options: MaxText's and the compiler's, beyond what the job
    says.
    """
    name = PEER_MODELS.get(asked.model_name)
    if name is None:
        raise UserError(
            f"--peer-python: no model of MaxText's is known for {asked.model_name or 'this one'}; "
            f"there are {', '.join(PEER_MODELS)}"
        )
    parts = settings.get("gradient_accumulation_steps", 1)
    rows, rest = divmod(asked.settings.data.batch_size, asked.topology.chips * parts)
    if rest:
        return None
    shared = {
        "model_name": name,
        "override_model_config": True,
        "base_num_decoder_layers": asked.model.num_layers,
        "max_target_length": asked.settings.data.sequence_length,
        "per_device_batch_size": rows,
        # The same description of the slice that ours is compiled for.
        "internal_compile": True,
        "compile_topology": asked.topology.name,
        "compile_topology_num_slices": 1,
        "internal_compile_num_devices": asked.topology.chips,
        "dataset_type": "synthetic",
        "enable_checkpointing": False,
        "run_name": "compiled",
    }
    with tempfile.TemporaryDirectory(prefix="chopjax-peer-") as made:
        folder = Path(made)
        dump = Dump(folder)
        all_options = {key: str(value) for key, value in dump.options.items()} | dict(options)
        both = shared | {"base_output_directory": folder} | dict(settings)
        command = [python, PEER_STEP, folder, json.dumps(all_options)]
        command += [f"{key}={value}" for key, value in both.items()]
        with _cpu_seconds() as spent:
            compiled = _run(command, dump, asked.topology.chip.usable_hbm)
        if not (folder / "about.json").exists():
            raise UserError(f"--peer-python {python}: {compiled}")
        about = json.loads((folder / "about.json").read_text())
    mesh_shape = {axis: size for axis, size in about["mesh"].items() if size > 1}
    torus = torus_dimensions(mesh_of(mesh_shape, about["places"]))
    row = _read(asked, compiled, mesh_shape, torus)
    cpu_seconds = spent() - about["cpu_seconds"]
    return row | {"versions": about["versions"], "compile_cpu_seconds": cpu_seconds}


def mesh_of(mesh_shape: Mapping[str, int], places: Sequence[Sequence[int]]) -> Any:
    """What torus_dimensions asks of a mesh; places: where its devices are, in the mesh's order."""
    found = np.empty(len(places), dtype=object)
    found[:] = [SimpleNamespace(coords=tuple(place)) for place in places]
    return SimpleNamespace(
        axis_names=tuple(mesh_shape), devices=found.reshape(tuple(mesh_shape.values()))
    )


def _run(command: list[Any], dump: Dump, limit: int) -> Compiled | TooLarge | str:
    """Until memory is laid out, as ours; then the process is ended. Its last words where it ends
    before and the reason is not memory: the compiler may refuse an option."""
    hidden = ("PYTHONPATH", "XLA_FLAGS", "LIBTPU_INIT_ARGS")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    said = dump.folder / "output"
    begun = time.monotonic()
    with said.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=dump.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        ended = False
        while True:
            memory = dump.memory()
            seconds = time.monotonic() - begun
            if memory is not None and memory.total <= limit:
                return dump.compiled(memory, seconds)
            if ended:
                break
            ended = process.poll() is not None  # and one look more at what it left
            interrupts.check()
            time.sleep(POLL_SECONDS)
    finally:
        process.kill()
        process.wait()
    text = said.read_text(errors="replace")
    if refusal := too_large(text, seconds):
        return refusal
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no output")


@contextlib.contextmanager
def _cpu_seconds() -> Iterator[Callable[[], float]]:
    """Of the processes that begin and end within it."""

    def so_far() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before, after = so_far(), float("nan")
    yield lambda: after - before
    after = so_far()


def _read(
    asked: Job,
    compiled: Compiled | TooLarge | str,
    mesh_shape: Mapping[str, int],
    torus: Mapping[str, frozenset[int]],
) -> Row:
    """One program, whoever's it is."""
    topology, settings = asked.topology, asked.settings
    row: Row = {
        "topology": topology.name,
        "layers": asked.model.num_layers,
        "mesh": {axis: size for axis, size in mesh_shape.items() if size > 1},
        "fits": isinstance(compiled, Compiled),
        "usable": topology.chip.usable_hbm,
    }
    if not isinstance(compiled, Compiled):
        return row | {"refusal": compiled if isinstance(compiled, str) else compiled.message}
    length = settings.data.sequence_length
    a_token = flops.training_per_token(asked.model, length)
    tokens = settings.data.batch_size * length
    collectives = collect(compiled.program, mesh_shape)
    done = work(compiled.program, topology.chip, tile_share(asked.model, length))
    roofline = estimate(
        asked.model, settings, topology, a_token, done, collectives, mesh_shape, torus
    )
    return row | {
        "compile_seconds": compiled.seconds,
        "memory": dataclasses.asdict(compiled.memory) | {"total": compiled.memory.total},
        "largest_temporaries": compiled.largest,
        "flops": done.flops,
        "flops_over_model": done.flops * topology.chips / (a_token * tokens),
        "hbm_bytes": done.hbm_bytes,
        "collectives": [dataclasses.asdict(each) for each in collectives],
        "unread": [*done.unknown_kernels, *["loop"] * compiled.program.unknown_loops],
        **{f"{key}_seconds": value for key, value in _seconds(roofline).items()},
        "mfu": roofline.mfu,
        "tokens_per_second": roofline.tokens_per_second,
    }


def _seconds(roofline: Any) -> dict[str, float]:
    parts = dataclasses.asdict(roofline)
    del parts["mfu"], parts["tokens_per_second"]
    return parts
