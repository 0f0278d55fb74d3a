"""The search for the fastest settings that fit, with a compiler that is a formula."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from chopjax.cli import main
from chopjax.models.compute import Remat
from chopjax.plan import plan as plans
from chopjax.plan.plan import Phase
from chopjax.plan.search import Candidate, Choice, Compile, Found, grow_chunk, walk
from chopjax.plan.topology import GIB

CONFIGS = Path(__file__).parents[2] / "configs"
PARTS = [1, 2, 4, 8, 16]
KEPT = {"none": 200, "dots": 90, "dots_except_mlp": 40, "full": 10}  # of one microbatch
AGAIN = {"none": 0.0, "dots": 0.1, "dots_except_mlp": 1.5, "full": 3.0}


def seconds(choice: Choice, gathers: float) -> float:
    return 10 + AGAIN[choice.remat] + gathers * choice.microbatches - choice.loss_chunk / 1e4


def formula(limit: float, gathers: float) -> Callable[[Choice], Candidate]:
    """Memory by KEPT, and a step that grows with each microbatch's gathers."""

    def compile_(choice: Choice) -> Candidate:
        total = 20 + KEPT[choice.remat] / choice.microbatches
        fits = total <= limit
        step = seconds(choice, gathers) if fits else math.inf
        return Candidate(choice, fits, round(total), step, None, None)

    return compile_


def adding_to(tried: list[Candidate], compile_: Compile) -> Compile:
    """Compiles what is not among them, as the search does."""

    def once(choice: Choice) -> Candidate:
        known = [one for one in tried if one.choice == choice]
        if not known:
            tried.append(compile_(choice))
        return (known or tried)[-1]

    return once


@pytest.mark.parametrize("limit", [21, 24, 31, 45, 60, 95, 130, 300])
@pytest.mark.parametrize("gathers", [0.0, 0.1, 0.8])
def test_the_best_is_found_with_few_programs(limit: float, gathers: float):
    compile_ = formula(limit, gathers)
    every = [compile_(Choice(r, n, 512)) for r in get_args(Remat) for n in PARTS]
    best = min((one.step_seconds for one in every if one.fits), default=math.inf)
    tried = [compile_(Choice("full", 4, 512))]  # the recipe's

    def may_win(choice: Choice) -> bool:
        now = min((one.step_seconds for one in tried), default=math.inf)
        return 10 + AGAIN[choice.remat] < now

    walk(PARTS, tried, adding_to(tried, compile_), lambda choice: True, may_win)
    assert min((one.step_seconds for one in tried), default=math.inf) == best
    assert len(tried) <= 10 < len(every)


def test_what_arithmetic_rules_out_is_not_compiled():
    """Nor what follows from what is known: that dots in four parts fits, in more does too."""
    tried = [formula(69, 0.1)(Choice("dots", 4, 512))]
    walk(
        PARTS,
        tried,
        adding_to(tried, formula(69, 0.1)),
        lambda choice: choice.microbatches > 1,
        lambda choice: False,
    )
    asked = [(one.choice.remat, one.choice.microbatches) for one in tried[1:]]
    assert asked == [("dots", 2), ("none", 8), ("none", 4)]


def test_the_chunk_grows_as_long_as_that_helps():
    def found(phase: Any = None) -> Found:
        return Found(phase, [formula(100, 0.1)(Choice("dots", 2, 512))])

    def compile_(slower_from: int) -> Callable[[Choice], Candidate]:
        def one(choice: Choice) -> Candidate:
            more = 1.0 if choice.loss_chunk >= slower_from else 0.0
            made = formula(100, 0.1)(choice)
            made = Candidate(choice, True, made.total, made.step_seconds + more, None, None)
            here.tried.append(made)
            return made

        return one

    for slower_from, tokens, chunks in (
        (2048, 10**6, [512, 1024, 2048]),
        (10**6, 10**6, [512, 1024, 2048, 4096, 8192]),
        (10**6, 4096, [512, 1024, 2048]),  # a microbatch has no more
        (0, 10**6, [512, 1024]),
    ):
        here = found()
        grow_chunk(here, tokens, compile_(slower_from))
        assert [one.choice.loss_chunk for one in here.tried] == chunks


@pytest.fixture
def by_formula(monkeypatch: pytest.MonkeyPatch) -> list[Phase]:
    """Of the real command, without a compiler. Half of the layers keep half."""
    asked: list[Phase] = []

    def measure(phase: Phase, *_: Any) -> dict[str, Any]:
        asked.append(phase)
        compute, share = phase.settings.compute, phase.model.num_layers / 32
        choice = Choice(*(getattr(compute, name) for name in Choice._fields))
        total = int(GIB * (10 + share * KEPT[choice.remat] * 2 / choice.microbatches))
        step = share * seconds(choice, 0.3)
        if choice.layers == "unrolled":  # pays after the chop
            step *= 0.9 if phase.model.num_layers == 16 else 1.1
        if choice.gather == "step":  # takes room, which there is before the chop
            total, step = total + (45 if share < 1 else 1) * GIB, 0.95 * step
        return {
            "fits": total <= 95 * GIB, "memory": {"total": total}, "step_seconds": step,
            "mfu": 5 / step, "seconds": {"exposed_collectives": 0.3},
        }  # fmt: skip

    def outline(*arguments: Any) -> Any:
        settings, mesh, _, phases = plans.outline(*arguments)
        return settings, mesh, None, phases

    monkeypatch.setattr("chopjax.plan.search.outline", outline)
    monkeypatch.setattr("chopjax.plan.search.measure", measure)
    return asked


COMMAND = ["plan", "--config", str(CONFIGS / "just_chop_llama2_7b.py"), "--topology", "v5p:4x4x4"]
PLAIN = ["--config.compute.remat=full", "--config.compute.microbatches=8"]
PLAIN += [f"--config.compute.after_chop.{name}" for name in ("remat=same", "microbatches=0")]


def test_both_phases_as_flags(by_formula: list[Phase], capsys: pytest.CaptureFixture):
    assert main([*COMMAND, *PLAIN, "--search", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["complete"]
    whole, half = found["phases"]
    assert (whole["layers"], half["layers"]) == (32, 16)
    # 10 + 90 x 2 / 4 and half of 90 x 2 / 2 fit; with half as many neither does.
    assert (whole["best"]["remat"], whole["best"]["microbatches"]) == ("dots", 4)
    assert (half["best"]["remat"], half["best"]["microbatches"]) == ("dots", 2)
    assert (whole["best"]["layers"], half["best"]["layers"]) == ("loop", "unrolled")
    assert (whole["best"]["gather"], half["best"]["gather"]) == ("step", "layer")
    assert whole["tried"][0]["remat"] == "full"
    assert whole["faster"] == pytest.approx(
        whole["tried"][0]["step_seconds"] / whole["best"]["step_seconds"]
    )
    assert "--config.compute.remat=dots" in found["flags"]
    assert "--config.compute.microbatches=4" in found["flags"]
    assert "--config.compute.gather=step" in found["flags"]
    assert "--config.compute.after_chop.gather=layer" in found["flags"]
    assert "--config.compute.after_chop.microbatches=2" in found["flags"]
    assert "--config.compute.after_chop.layers=unrolled" in found["flags"]
    assert not any("after_chop.remat" in flag for flag in found["flags"])  # as before the chop
    programs = len(by_formula)
    assert main([*COMMAND, *PLAIN, *found["flags"], "--search"]) == 0
    shown = capsys.readouterr().out
    assert shown.rstrip().endswith("The recipe's settings are the best.")
    assert "does not fit" in shown
    assert len(by_formula) - programs <= programs


def test_what_is_known_at_ctrl_c_is_printed(
    by_formula: list[Phase], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def impatient(found: Found, *_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("chopjax.plan.search.grow_chunk", impatient)
    assert main([*COMMAND, *PLAIN, "--search"]) == 130
    shown = capsys.readouterr().out
    assert "The search was stopped" in shown
    assert "all layers, 32 layers" in shown
    assert "after the chop," not in shown
    assert shown.rstrip().splitlines()[-1].startswith("--config.compute.remat=")


def test_without_a_compiler(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert main([*COMMAND, "--search"]) == 2
    assert "--search compiles what it tries, and libtpu is not installed" in capsys.readouterr().err
    assert main([*COMMAND, "--search", "--tokens", "1e9"]) == 2
