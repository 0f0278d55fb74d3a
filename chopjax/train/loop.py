"""The training run, from top to bottom.

    WORKDIR/huggingface/, WORKDIR/chopjax_folder.json    what `chopjax export WORKDIR` needs
    WORKDIR/checkpoints/STEP/                            see checkpoints.py
    WORKDIR/metrics.jsonl, WORKDIR/tensorboard/          see metrics.py

Started again with the same WORKDIR, a run goes on from its newest good checkpoint to the same bits
as if nothing had happened: a batch is a function of the seed and the step, and a checkpoint holds
everything else.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from chopjax.checkpoint.describe import HUGGINGFACE, Description
from chopjax.checkpoint.load import load
from chopjax.chop.surgery import chop_tree
from chopjax.compilation import compiled
from chopjax.data.batch_source import BatchSource
from chopjax.data.tokenizer import load_tokenizer
from chopjax.disk.atomic import USERS_ERRORS
from chopjax.disk.files import expanded
from chopjax.errors import UserError, listing
from chopjax.hardware import memory_bytes
from chopjax.keep import ranges
from chopjax.launch.distributed import EXIT_PREEMPTED, wait_for_all
from chopjax.launch.stopping import stop_requests
from chopjax.launch.workdir import owned
from chopjax.models import mesh as meshes
from chopjax.models.attention import choose as choose_attention
from chopjax.models.attention import why_not
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import Params
from chopjax.models.scores import all_scores
from chopjax.progress import progress, say
from chopjax.train import checkpoints, projections
from chopjax.train.base import base_record, find_base
from chopjax.train.compiler_options import read_options
from chopjax.train.evaluation import evaluate as evaluate_batches
from chopjax.train.evaluation import held_out_batches
from chopjax.train.feed import on_mesh, prefetch, training_batches
from chopjax.train.fixed_masks import check_zeros
from chopjax.train.frozen import chop_frozen, read_frozen
from chopjax.train.metrics import Clock, Guard, MetricsWriter, peak_flops
from chopjax.train.metrics_file import read_metrics
from chopjax.train.optimizer import learning_rate, make_optimizer
from chopjax.train.origin import Origin, find_origin, from_record, run_record, write_assets
from chopjax.train.own_files import check_workdir
from chopjax.train.same_run import differences, reshaped
from chopjax.train.settings import Settings, read
from chopjax.train.space import check_training
from chopjax.train.step import (
    State,
    abstract_batch,
    abstract_state,
    batch_fields,
    begin,
    begin_from_scratch,
    make_eval_step,
    make_finite_check,
    make_train_step,
    shardings_of,
)
from chopjax.train.task import Task, task_of
from chopjax.train.teacher import Teacher, check_teacher, different, find_teacher, resumed
from chopjax.train.tracer import Tracer
from chopjax.train.wandb_run import check_wandb, wandb_run

CHECKPOINTS = "checkpoints"
LAST_STEPS = 100  # that the summary's loss is the mean of


def newest(workdir: str | Path) -> str:
    """A sentence about the newest checkpoint, for a run that was stopped."""
    return checkpoints.newest(expanded(workdir) / CHECKPOINTS)


def train(
    config: ConfigDict, workdir: str | Path, force: bool = False, params: Params | None = None
) -> dict[str, Any]:
    """Train, or go on training, as the config says; returns a summary.

    force: resume although settings changed that change what the run means. params: what the run
    would read from config.model at its start, in memory already; they are copied.
    Raises UserError; SystemExit(75) after SIGTERM and KeyboardInterrupt after Ctrl-C, both with the
    state saved.
    """
    workdir = expanded(workdir)
    try:
        with contextlib.ExitStack() as stack:
            return _train(config, workdir, force, params, stack)
    except OSError as error:
        if error.errno not in USERS_ERRORS:
            raise
        raise UserError(
            f"{error.filename or workdir}: {error.strerror}. {newest(workdir)} "
            "Free some space or repair the folder, then start again."
        ) from error


def _train(
    config: ConfigDict,
    workdir: Path,
    force: bool,
    params: Params | None,
    stack: contextlib.ExitStack,
) -> dict[str, Any]:
    started = time.monotonic()

    # ------------------------------------------------------------------------------ Settings
    settings = read(config)
    check_wandb(settings.log.wandb)
    stop = stack.enter_context(stop_requests())
    stack.enter_context(owned(workdir, check_workdir))
    folder = workdir / CHECKPOINTS
    folder.mkdir(parents=True, exist_ok=True)
    first = jax.process_index() == 0

    # ------------------------------------------------------------------- Is there a run yet?
    with progress("check the checkpoints"):
        found_step = checkpoints.latest_good(folder)
    read_metrics(workdir)  # what cannot be gone on with is said before anything is loaded
    if first:
        checkpoints.remove_partial(folder)
    record: dict[str, Any] = {}
    teacher: Teacher | None = None
    found: Description | None = None  # the teacher at rest
    if found_step is None:
        step = tokens = 0
        origin, description = find_origin(settings)
        if settings.teacher.model:
            provenance = description.provenance if description else None
            teacher, found = find_teacher(settings, origin, provenance)
            tokenizer = description.folder if description else expanded(settings.tokenizer)
            check_teacher(found, origin.config_at(0), tokenizer, settings)
        if first:
            write_assets(workdir, origin, description, settings)
        wait_for_all("assets")
    else:
        step, record = found_step, checkpoints.read_record(folder, found_step)
        tokens = record["tokens"]
        origin, description = from_record(record["origin"]), None
        _check_same_run("settings", differences(record["config"], asdict(settings)), force)
        if settings.adapter.rank:  # the checkpoint holds no base
            description = find_base(settings, record)
        if settings.teacher.model:
            teacher, found = resumed(record.get("teacher"), settings.teacher)
            _check_same_run("teacher", different(record["teacher"], teacher), force)
            check_teacher(found, origin.config_at(0), workdir / HUGGINGFACE, settings)
        say(f"resuming {workdir} after step {step} of {settings.total_steps}")
    model = origin.config_at(step)
    if first:
        saved = min(
            settings.checkpoints.every * (step // settings.checkpoints.every + 1),
            settings.total_steps,
        )
        then, there, beside = origin.config_at(saved), len(checkpoints.steps(folder)), 0
        if teacher is not None:
            maps = projections.shapes(then, teacher.config, settings.teacher)
            beside = projections.count(maps)
        check_training(folder, then, settings, step, there, beside)

    # ---------------------------------------------------------------------------------- Mesh
    mesh = meshes.make_mesh(
        settings.mesh.data, settings.mesh.fsdp, settings.mesh.tensor, settings.mesh.slices
    )
    stack.enter_context(jax.set_mesh(mesh))
    say(meshes.describe(model, mesh))
    for later in (step, settings.total_steps):
        _check_sizes(origin.settings_at(settings, later), model, mesh, teacher)

    # ---------------------------------------------------------------------------------- Data
    shape = (settings.data.batch_size, settings.data.sequence_length)
    batches = training_batches(settings.data, settings.seed, settings.teacher.top_k)
    held_out = held_out_batches(settings)
    fingerprints = _fingerprints(workdir, model, batches, held_out)
    stores = {
        "train": batches.record,
        "held_out": None if held_out is None else held_out.record,
    }
    if record:
        changed = differences(record["fingerprints"], fingerprints)
        _check_same_run("data", changed, force)

    # -------------------------- Decide how to initialize training. The order is important.
    # 1. A checkpoint of this run.  2. Adapters, on a model.  3. Random weights.  4. A model.
    optimizer = make_optimizer(settings.optimizer, settings.total_steps)
    now = origin.settings_at(settings, step)
    task = task_of(model, now, mesh, teacher)
    abstract = abstract_state(task.trainable, optimizer, settings, mesh)
    keep = origin.keep if step >= origin.chop_after else None
    taught_by = None if teacher is None or found is None else (teacher, found)
    frozen = read_frozen(task, settings, model, keep, description, taught_by, params)
    adapted = description if settings.adapter.rank else None
    base = None if adapted is None else base_record(settings, adapted)
    if found_step is not None:
        with progress(f"read the checkpoint of step {found_step}"):
            state = checkpoints.restore(folder, found_step, abstract)
    elif settings.adapter.rank:
        state = begin({}, optimizer, settings, abstract, task.fresh)
    elif description is None or settings.from_scratch:
        say(f"{origin.name}, seed {settings.seed}")
        state = begin_from_scratch(model, optimizer, settings, abstract, task.fresh)
    elif params is not None:
        where = {name: shardings_of(abstract["params"][name]) for name in params}
        copied = jax.device_put(params, where, may_alias=False)  # `begin` takes its argument
        state = begin(copied, optimizer, settings, abstract, task.fresh)
    else:
        state = _begin_from_model(description, origin, task, optimizer, settings, abstract)

    if settings.masks == "fixed" and found_step is None:
        check_zeros(frozen["base"] if settings.adapter.rank else state["params"], mesh)

    # ------------------------------------------------------------------- Programs and clocks
    train_step, eval_step = _programs(model, task, optimizer, now, mesh)
    peak, peak_source = peak_flops(settings.compute.dtype)
    clock = Clock(task.flops, shape, peak, started)
    # All of them now: one by one, they would wait in the device's queue behind the step at work.
    rates = np.asarray(
        learning_rate(settings.optimizer, settings.total_steps)(np.arange(settings.total_steps))
    )
    project = settings.log.wandb if first else ""
    wandb = stack.enter_context(wandb_run(project, workdir, asdict(settings), step))
    writer = stack.enter_context(MetricsWriter(workdir, step, settings.log.tensorboard, wandb))
    saver = stack.enter_context(
        checkpoints.Saver(folder, settings.checkpoints.keep_last, settings.checkpoints.keep_every)
    )
    steps = range(step, settings.total_steps)
    feed = prefetch(lambda index: on_mesh(batches, index, mesh), steps)
    stack.enter_context(contextlib.closing(feed))
    saved_step = found_step
    teacher_record = teacher.record() if teacher else None
    tracer = Tracer(settings.log.profile, workdir)
    guard = Guard(folder)
    is_finite = make_finite_check(mesh)

    def report(begun: int, metrics: Mapping[str, jax.Array]) -> None:
        """Wait for a step, write its line, and stop where its loss is not a number."""
        nonlocal tokens
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        times = clock.tick()
        tokens += int(values["tokens"])
        row = values | {"learning_rate": float(rates[begun]), "tokens": tokens}
        writer.write(begun + 1, row | times)
        guard.check(begun + 1, values)
        bar.update(begun + 1, loss=values["loss"], **clock.shown())

    def evaluate() -> float | None:
        """The window loss, once a step; None where it is known already or cut short."""
        if held_out is None or writer.has_evaluation(step):
            return None
        loss, counted = evaluate_batches(
            eval_step, state["params"], frozen, held_out, mesh, stop.agreed
        )
        if stop:
            return None
        writer.write(step, {"eval_loss": loss, "eval_tokens": counted})
        say(f"step {step}: window loss {loss:.4f} nats per held-out token, of {counted}")
        return loss

    def save() -> None:
        nonlocal saved_step
        if step == saved_step:
            return
        if not is_finite(state):  # the loss would say so only after the next step
            raise UserError(f"step {step}: the state is not finite. {guard.advice()}")
        writer.flush()
        about = run_record(
            settings, origin, fingerprints, stores, step, tokens, base, teacher_record
        )
        saver.save(step, state, about)
        saved_step = step

    # -------------------------------------------------------------------------------- Train
    stop.begin_training()
    every = settings.evaluation.every
    with progress("train", settings.total_steps, "step", step) as bar:
        # A run that was killed between a save and the evaluation of that step makes up for it.
        was_chop = origin.keep is not None and step == origin.chop_after > 0
        if was_chop or (every and step % every == 0):
            evaluate()
        clock.restart()
        running: tuple[int, Any] | None = None  # the step that the device works on
        while step < settings.total_steps and not stop.agreed():
            tracer.before(step)
            batch = next(feed)
            # A number that came from the host in each step would make the device wait.
            with jax.transfer_guard("disallow"):
                state, metrics = train_step(state, frozen, batch)
            if running:
                report(*running)
            running = (step, metrics)
            step += 1

            # ------------------------------- Chop, save and evaluate, where this step is due
            is_chop = origin.keep is not None and step == origin.chop_after
            is_evaluation = every > 0 and step % every == 0
            is_save = step % settings.checkpoints.every == 0 or step == settings.total_steps
            if not (is_chop or is_evaluation or is_save or stop or tracer.ends(step)):
                continue
            report(*running)
            running = None
            tracer.after(step)
            if is_chop:
                say(f"step {step}: chopping; layers {ranges(origin.keep or ())} stay")
                state = chop_tree(state, origin.keep or ())
                model = origin.config_at(step)
                now = origin.settings_at(settings, step)
                task = task_of(model, now, mesh, teacher)
                frozen = chop_frozen(frozen, task, model, origin.keep or (), teacher)
                train_step, eval_step = _programs(model, task, optimizer, now, mesh)
                clock.now_of(task.flops)
            if is_save or stop:
                save()
            if is_chop or is_evaluation:
                evaluate()
            clock.restart()
        if running:
            report(*running)
        save()
        with progress(f"save step {step}"):
            saver.wait()

        # ------------------------------------------------------------------------------ End
        if stop:
            say(f"saved after step {step} in {folder / str(step)}; run the same command to go on")
            if stop.signal == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(EXIT_PREEMPTED)
        evaluate()
    if times := clock.summary():
        writer.write(step, {f"run_{name}": value for name, value in times.items()})
    writer.flush()
    wait_for_all("end")
    return _summary(workdir, task, origin, step, tokens, clock, peak_source)


# ------------------------------------------------------------------------- Parts of the above


def _programs(
    model: ModelConfig,
    task: Task,
    optimizer: optax.GradientTransformation,
    settings: Settings,
    mesh: Mesh,
) -> tuple[Any, Any]:
    """The compiled training step and the evaluation step."""
    attention: str = settings.compute.attention
    reason = None
    if attention == "auto":
        length, dtype = settings.data.sequence_length, jnp.dtype(settings.compute.dtype)
        attention, reason = choose_attention(length, dtype, model.head_dim, all_scores(model))
    because = f" ({reason})" if reason else ""
    say(f"attention: {attention}{because}; compiling the step for {model.num_layers} layers")
    begun = time.monotonic()
    batch = abstract_batch(settings, mesh)
    abstract = abstract_state(task.trainable, optimizer, settings, mesh)
    with progress("compile the step"):
        step = make_train_step(
            task.objective, optimizer, settings, abstract, task.frozen, mesh, task.matrices
        )
        lowered = step.lower(abstract, task.frozen, batch)
        train_step = compiled(lowered, read_options(settings.compute.compiler_options))
    say(f"compiled in {time.monotonic() - begun:.1f} s")
    wait_for_all("compiled")  # on CPUs a collective waits half a minute for the others
    return train_step, make_eval_step(task.held_out, task.trainable, task.frozen, mesh)


def _begin_from_model(
    description: Description,
    origin: Origin,
    task: Task,
    optimizer: optax.GradientTransformation,
    settings: Settings,
    abstract: State,
) -> State:
    keep = origin.keep if origin.chop_after == 0 else None
    which = "all layers" if keep is None else f"layers {ranges(keep)}"
    say(f"loading {which} of {description.name}")
    loaded = load(
        settings.model,
        settings.revision or None,
        keep=keep,
        shardings=shardings_of(abstract["params"]),
        dtype=settings.compute.param_dtype,
    )
    return begin(loaded.params, optimizer, settings, abstract, task.fresh)


def _fingerprints(
    workdir: Path, model: ModelConfig, batches: BatchSource, held_out: BatchSource | None
) -> dict[str, Any]:
    """Of tokenizer and training data. Raises UserError where they do not fit the model."""
    tokenizer = load_tokenizer(workdir / HUGGINGFACE)
    for source in filter(None, (batches, held_out)):
        source.check(tokenizer.fingerprint, model.vocab_size)
    return {"tokenizer": tokenizer.fingerprint, **batches.fingerprint}


def _check_sizes(
    settings: Settings, model: ModelConfig, mesh: Mesh, teacher: Teacher | None
) -> None:
    data, parts = settings.data, settings.compute.microbatches
    problems = []
    if data.sequence_length > model.max_positions:
        problems.append(
            f"data.sequence_length {data.sequence_length}: the model has only "
            f"{model.max_positions} positions"
        )
    shards = meshes.batch_shards(mesh)
    for name, size in {
        "data.batch_size": data.batch_size,
        "evaluation.batch_size": settings.evaluation.batch_size * parts,
    }.items():
        if size % (shards * parts):
            problems.append(
                f"{name} {size}: not a multiple of {shards} shards x {parts} microbatches"
            )
    room = memory_bytes() // 2
    numbers = sum(math.prod(tail) for tail, _ in batch_fields(settings.teacher.top_k).values())
    if (host := data.batch_size // shards * data.sequence_length * 4 * numbers) > room:
        problems.append(
            f"data.batch_size {data.batch_size}: a device's part alone is {host:,} bytes on the "
            f"host, which has {2 * room:,}"
        )
    for config in (model, *([teacher.config] if teacher else [])):
        reason = why_not(
            settings.compute.attention,
            data.sequence_length,
            jnp.dtype(settings.compute.dtype),
            config.head_dim,
            all_scores(config),
            jax.default_backend(),
        )
        if reason:
            problems.append(f"compute.attention: {reason}; auto chooses what can run")
            break
    if problems:
        raise UserError(f"the config does not fit model and mesh:\n{listing(problems)}")


def _check_same_run(what: str, changes: Sequence[str], force: bool) -> None:
    """Refuse to resume where something changed that changes what the run means."""
    if not changes:
        return
    if force and not reshaped(changes):
        say(f"--force: resuming although the {what} changed:\n{listing(list(changes))}")
        return
    ways = "Take the change back, give another --workdir, or go on all the same with --force."
    if reshaped(changes):
        ways = "Take the change back, or give another --workdir: what was saved has another shape."
    raise UserError(
        f"the {what} of this run changed since it was started:\n{listing(list(changes))}\n{ways}"
    )


def _summary(
    workdir: Path,
    task: Task,
    origin: Origin,
    step: int,
    tokens: int,
    clock: Clock,
    peak_source: str,
) -> dict[str, Any]:
    rows = read_metrics(workdir)
    losses = [row["loss"] for row in rows if "loss" in row][-LAST_STEPS:]
    evaluations = [row for row in rows if "eval_loss" in row]
    return {
        "workdir": str(workdir),
        "checkpoint": str(workdir / CHECKPOINTS / str(step)),
        "steps": step,
        "tokens": tokens,
        "layers": origin.config_at(step).num_layers,
        "kept_layers": None if origin.keep is None else list(origin.keep),
        "loss": sum(losses) / len(losses) if losses else None,
        "loss_steps": len(losses),
        "eval_loss": evaluations[-1]["eval_loss"] if evaluations else None,
        "eval_tokens": evaluations[-1]["eval_tokens"] if evaluations else None,
        **clock.summary(),
        "flops": task.formula,
        "peak": peak_source,
    }
