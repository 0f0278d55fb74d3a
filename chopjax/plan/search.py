"""`plan --search`: the fastest settings of each phase that fit, by compiling few of them.

Memory shrinks with more microbatches and with more that is computed again, and a step grows with
either. So of each of remat's policies only the fewest microbatches that fit matter, and a policy
that keeps less needs no more of them. `walk` follows that staircase. What arithmetic rules out is
not compiled: where state and kept activations alone are too much, and where the matrix products
alone take longer than the best step so far. At the corner that is best, the loss's chunk grows for
as long as that helps, then the layers are unrolled, and then the kernels are gathered once a step.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

from jax.sharding import Mesh

from chopjax.errors import UserError
from chopjax.models.compute import Layers, Remat
from chopjax.models.mesh import batch_shards
from chopjax.plan.chip_memory import kept
from chopjax.plan.compile import abstract_inputs, bytes_per_chip
from chopjax.plan.plan import Phase, measure, outline
from chopjax.plan.roofline import estimate
from chopjax.plan.topology import AnyTopology
from chopjax.progress import progress
from chopjax.train.after_chop import Gather
from chopjax.train.origin import Origin
from chopjax.train.settings import Settings
from chopjax.train.task import task_of
from chopjax.train.teacher import Teacher

LARGEST_CHUNK = 8192  # tokens of the loss; logits of more take room and save nothing
USUAL = 7  # programs of a phase, for the bar: how many it takes shows on the way


class Choice(NamedTuple):
    """What of `compute` is searched."""

    remat: Remat
    microbatches: int
    loss_chunk: int
    layers: Layers = "loop"
    gather: Gather = "layer"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A choice, as it was compiled."""

    choice: Choice
    fits: bool
    total: int  # bytes on a chip
    step_seconds: float  # infinite for what does not fit
    exposed_seconds: float | None  # of these, collectives that the compiler does not hide
    mfu: float | None


@dataclasses.dataclass
class Found:
    """Of a phase, so far. The first of `tried` is what the recipe says."""

    phase: Phase
    tried: list[Candidate] = dataclasses.field(default_factory=list)
    complete: bool = False

    @property
    def best(self) -> Candidate | None:
        """Of those that are as fast to four digits, the first."""
        fitting = [one for one in self.tried if one.fits]
        return min(fitting, key=lambda one: float(f"{one.step_seconds:.4g}"), default=None)


Compile = Callable[[Choice], Candidate]
May = Callable[[Choice], bool]


def search(
    settings: Settings,
    origin: Origin,
    topology: AnyTopology,
    teacher: Teacher | None,
    found: list[Found],
) -> None:
    """Search every phase of a run. `found` is filled on the way, for whoever is interrupted.

    Raises UserError where there is no compiler, and for what the mesh cannot split.
    """
    _, mesh, why_not, phases = outline(settings, origin, topology, settings.total_steps)
    if why_not:
        raise UserError(f"plan --search compiles what it tries, and {why_not.partition(':')[0]}")
    found += [Found(phase) for phase in phases]
    for each in found:
        _search_phase(each, topology, mesh, teacher)
        each.complete = True


def _search_phase(found: Found, topology: AnyTopology, mesh: Mesh, teacher: Teacher | None) -> None:
    phase, known = found.phase, dict[Choice, Candidate]()
    compute = phase.settings.compute
    now = Choice(*(getattr(compute, name) for name in Choice._fields))
    parts = _parts(phase, mesh)

    def may_fit(choice: Choice) -> bool:
        return _least_bytes(_with(phase, choice), mesh, teacher) <= topology.chip.usable_hbm

    def may_win(choice: Choice) -> bool:
        least = _products(_with(phase, choice), topology, mesh, teacher)
        return found.best is None or least < found.best.step_seconds

    with progress(f"search, {phase.name}", USUAL, "programs") as bar:

        def compile_(choice: Choice) -> Candidate:
            if choice not in known:
                bar.expect(max(USUAL, bar.done + 1))
                bar.update(bar.done, compiling=_words(choice))
                measured = measure(_with(phase, choice), topology, mesh, teacher)
                known[choice] = _candidate(choice, measured)
                found.tried.append(known[choice])
                bar.advance(best="none fits" if found.best is None else _seconds(found.best))
            return known[choice]

        compile_(now)
        walk(parts, found.tried, compile_, may_fit, may_win)
        tokens = phase.settings.data.batch_size // batch_shards(mesh)
        tokens *= phase.settings.data.sequence_length
        grow_chunk(found, tokens, compile_)
        if found.best is not None:
            compile_(found.best.choice._replace(layers="unrolled"))
        if found.best is not None and _gathers_often(_with(phase, found.best.choice), mesh):
            compile_(found.best.choice._replace(gather="step"))


def walk(
    parts: list[int], tried: list[Candidate], compile_: Compile, may_fit: May, may_win: May
) -> None:
    """Compile each policy's fewest microbatches that fit, and few others.

    parts: how many microbatches there can be, ascending. tried: at least one candidate, from which
    the others differ in nothing else; compile_ adds to them.
    """

    def of(remat: Remat, place: int) -> Choice:
        return tried[0].choice._replace(remat=remat, microbatches=parts[place])

    def fits(remat: Remat, place: int) -> bool:
        choice = of(remat, place)
        for one in tried:
            if one.fits and _keeps_no_less(one.choice, choice):
                return True
            if not one.fits and _keeps_no_less(choice, one.choice):
                return False
        return may_fit(choice) and compile_(choice).fits

    def fewest(remat: Remat, low: int = 0) -> int:
        def so_many_fit(place: int) -> bool:
            return fits(remat, place)

        place = bisect.bisect_left(range(len(parts)), True, lo=low, key=so_many_fit)
        if place < len(parts):  # which may be known to fit, and no more
            compile_(of(remat, place))
        return place

    # What "none" takes up is the least known beforehand: it comes last, above "dots".
    of_dots = place = fewest("dots")
    for remat in get_args(Remat)[2:]:
        if not may_win(of(remat, 0)):
            continue
        if place == len(parts):
            place = fewest(remat)
            continue
        while place > 0 and fits(remat, place - 1):
            place -= 1
    fewest("none", of_dots)


def _gathers_often(phase: Phase, mesh: Mesh) -> bool:
    """Whether compute.gather=step would be another program."""
    settings = phase.settings
    apart = mesh.shape["fsdp"] > 1 and not settings.adapter.rank
    return apart and settings.compute.microbatches > 1


def _keeps_no_less(one: Choice, other: Choice) -> bool:
    order = get_args(Remat)
    fewer_again = order.index(one.remat) <= order.index(other.remat)
    return fewer_again and one.microbatches <= other.microbatches


def grow_chunk(found: Found, tokens: int, compile_: Compile) -> None:
    """Double the loss's chunk of the best candidate for as long as that is faster. tokens: of a
    batch on one device."""
    best = found.best
    while best is not None:
        larger = best.choice.loss_chunk * 2
        if larger > min(LARGEST_CHUNK, tokens // best.choice.microbatches):
            return
        compile_(best.choice._replace(loss_chunk=larger))
        if found.best is best:
            return
        best = found.best


def _parts(phase: Phase, mesh: Mesh) -> list[int]:
    """Powers of two that leave every device a row."""
    rows = phase.settings.data.batch_size // batch_shards(mesh)
    return [2**n for n in range(rows.bit_length()) if rows % 2**n == 0]


def _with(phase: Phase, choice: Choice) -> Phase:
    compute = dataclasses.replace(phase.settings.compute, **choice._asdict())
    return phase._replace(settings=dataclasses.replace(phase.settings, compute=compute))


def _candidate(choice: Choice, measured: dict[str, Any]) -> Candidate:
    fits = measured["fits"]
    return Candidate(
        choice,
        fits,
        measured["memory"]["total"],
        measured["step_seconds"] if fits else math.inf,
        measured["seconds"]["exposed_collectives"],
        measured["mfu"] if fits else None,
    )


def _least_bytes(phase: Phase, mesh: Mesh, teacher: Teacher | None) -> int:
    """Of a chip, whatever the compiler does: state, batch, what is only read, and activations that
    are kept."""
    task = task_of(phase.model, phase.settings, mesh, teacher)
    state, batch = abstract_inputs(task, phase.settings, mesh)
    remat = phase.settings.compute.remat
    if phase.settings.adapter.rank:
        remat = "full"  # what is frozen has no gradient that asks for what the others keep
    elif remat == "none":
        remat = "dots"
    choice = Choice(remat, phase.settings.compute.microbatches, 1)
    of_blocks = kept(phase.model, _with(phase, choice).settings, mesh.shape)
    return of_blocks + sum(bytes_per_chip(tree) for tree in (state, batch, task.frozen))


def _products(phase: Phase, topology: AnyTopology, mesh: Mesh, teacher: Teacher | None) -> float:
    """Seconds of a step's matrix products at the chip's peak."""
    task = task_of(phase.model, phase.settings, mesh, teacher)
    return estimate(phase.model, phase.settings, topology, task.flops).step


def _words(choice: Choice) -> str:
    parts, chunk, once = choice.microbatches, choice.loss_chunk, choice.gather == "step"
    words = f"{choice.remat}, {parts} parts, chunk {chunk}, {choice.layers}"
    return f"{words}, gathered once" if once else words


def _seconds(one: Candidate) -> str:
    return f"{one.step_seconds:.4g} s"


# ------------------------------------------------------------------------------- What was found


def flags(found: list[Found], settings: Settings) -> list[str]:
    """The best of each phase as flags of the command line, where the recipe differs."""
    flags = []
    moved: dict[str, Any] = {}  # of compute, which compute.after_chop follows where it is silent
    for each in found:
        if each.best is None:
            continue
        own = settings.compute.after_chop.given() if each.phase.group != "compute" else {}
        now = dataclasses.asdict(each.phase.settings.compute) | moved | own
        best = each.best.choice._asdict()
        changed = {name: value for name, value in best.items() if now[name] != value}
        flags += [f"--config.{each.phase.group}.{name}={v}" for name, v in changed.items()]
        moved |= changed
    return flags


def as_record(found: list[Found], settings: Settings) -> dict[str, Any]:
    """For --json: seconds, bytes; what does not fit has no seconds."""

    def row(one: Candidate) -> dict[str, Any]:
        values = dataclasses.asdict(one)
        del values["choice"]
        return {**one.choice._asdict(), **values}

    return {
        "complete": all(each.complete for each in found),
        "flags": flags(found, settings),
        "phases": [
            {
                "name": each.phase.name,
                "layers": each.phase.model.num_layers,
                "tried": [row(one) for one in each.tried],
                "best": each.best and row(each.best),
                "faster": each.best and each.tried[0].step_seconds / each.best.step_seconds,
            }
            for each in found
        ],
    }
