"""Bars on terminals of several widths, and lines where there is no terminal."""

from __future__ import annotations

import contextlib
import io
import re
import sys

import pytest
from rich.console import Console

from chopjax import progress as module
from chopjax.progress import Bar, over, progress, say


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> io.StringIO:
    """A terminal of 80 columns."""
    output = io.StringIO()
    console = Console(file=output, width=80, height=24, force_terminal=True, no_color=True)
    monkeypatch.setattr(module, "_console", lambda: console)
    monkeypatch.setattr(module, "_on_terminal", lambda: True)
    return output


def training(clock: Clock, steps: int = 370) -> Bar:
    """A bar as `chopjax train` has it, at a step a second after a slow first one."""
    bar = Bar("train", 1000, "step", 0)
    clock.now += 60
    for step in range(steps):
        values = {"tok/s": "123,456", "MFU": "38.2 %"}
        bar.update(step + 1, loss=2.3456789, **values)
        clock.now += 1
    return bar


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_percentage_time_left_and_loss_survive(clock: Clock, width: int, ascii_only: bool) -> None:
    line = training(clock).line(width, ascii_only).plain
    assert len(line) < width
    assert {"37 %", "10:29 left", "loss 2.346"} <= set(line[2:].split("  "))
    assert ("370/1k step" in line) == (width >= 60)
    assert ("MFU 38.2 %" in line) == (width >= 80)
    assert ("so far" in line) == (width >= 200)
    assert line.isascii() or not ascii_only


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_a_long_label_makes_way(clock: Clock, width: int) -> None:
    bar = Bar("chop to /a/folder/with/a/long/name/in/a/folder/with/a/long/name", 4e9, "B", 0)
    for _ in range(20):
        clock.now += 1
        bar.advance(1e8)
    line = bar.line(width).plain
    assert len(line) < width
    assert "50 %" in line
    assert "0:20 left" in line or width < 40
    assert ("2G/4GB" in line) == (width >= 40)
    assert "/a/folder" in line or width < 60


def test_time_left_is_there_from_the_second_tick_without_the_first(clock: Clock) -> None:
    bar = Bar("train", 10, "step", 0)
    assert "-:-- left" in bar.line(80).plain
    clock.now += 90  # compiles
    bar.advance()
    clock.now += 2
    bar.advance()
    assert bar.seconds_left(clock.now) == pytest.approx(8 * 2)
    clock.now += 1
    assert bar.seconds_left(clock.now) == pytest.approx(8 * 2 - 1)  # it counts down in between
    clock.now += 1000
    assert bar.seconds_left(clock.now) == 0


def test_time_left_follows_a_change_of_speed(clock: Clock) -> None:
    bar = Bar("train", 1000, "step", 0)
    for seconds in [1] * 100 + [10] * 30:
        clock.now += seconds
        bar.advance()
    assert bar.seconds_left(clock.now) == pytest.approx((1000 - 130) * 10, rel=0.01)


def test_answers_of_one_batch_are_one_tick(clock: Clock) -> None:
    bar = Bar("score", 100, "docs", 0)
    for _ in range(4):
        clock.now += 5
        for _ in range(10):
            clock.now += 0.001
            bar.advance()
    assert bar.seconds_left(clock.now) == pytest.approx(60 / 10 * 5, rel=0.01)


def test_a_resumed_job_counts_its_own_speed(clock: Clock) -> None:
    bar = Bar("train", 1000, "step", 900)
    for _ in range(10):
        clock.now += 3
        bar.advance()
    assert bar.seconds_left(clock.now) == pytest.approx(90 * 3)
    assert "0.3333 step/s" in bar.line(200).plain


def test_no_bar_stands_at_100_percent(clock: Clock) -> None:
    bar = training(clock, steps=1000)
    line = bar.line(80).plain
    assert "99 %" in line
    assert "finishing" in line
    assert "100 %" not in line


def test_work_that_cannot_be_counted_shows_its_time(clock: Clock) -> None:
    bar = Bar("compile", None, "it", 0)
    clock.now += 75
    assert bar.line(80).plain[2:] == "compile  1:15"
    bar.advance(3)
    assert "3 it  1:15" in bar.line(80).plain


def test_a_total_may_come_to_light(clock: Clock) -> None:
    bar = Bar("perplexity", 0, "tokens", 0)
    bar.expect(200)
    clock.now += 1
    bar.advance(50)
    assert "25 %  0:03 left  50/200 tokens" in bar.line(80).plain


def test_bars_on_a_terminal(clock: Clock, screen: io.StringIO) -> None:
    message = "step 10: a line about /a/path that is " + "long " * 20
    with progress("points", 2, "points") as outer:
        with progress("train", 10, "step") as bar:
            for _ in range(10):
                clock.now += 1
                bar.advance(loss=2.5)
            say(message)
            assert module._display is not None
            module._display.refresh()
        outer.advance()
        clock.now += 3
        with progress("quick"):
            pass
    assert module._display is None
    hidden, given_back = "\x1b[?25l", "\x1b[?25h"
    assert screen.getvalue().split(hidden, 1)[1].startswith(given_back)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    lines = [line.strip() for line in re.split(r"[\r\n]+", shown)]
    assert message.strip() in lines  # in one piece, though longer than the terminal
    both = [i for i, line in enumerate(lines) if "points" in line and "0 %" in line]
    assert any("train" in lines[i + 1] and "99 %" in lines[i + 1] for i in both)


def test_what_took_its_time_leaves_a_line(
    clock: Clock, screen: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("train", 10, "step") as bar:
        clock.now += 90
        bar.update(10, loss=2.5)
    with progress("quick", 1):
        pass
    with contextlib.suppress(ValueError), progress("failed", 10):
        clock.now += 90
        raise ValueError
    assert capsys.readouterr().err == "train:  10/10 step  in 1:30  loss 2.5\n"


def test_lines_without_a_terminal(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train", 100, "step") as bar:
        for _ in range(100):
            clock.now += 1
            bar.advance(loss=2.5)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11  # after 2 s, then every 10 s, and the last word
    assert lines[0].startswith("train:  2 %  1:38 left  loss 2.5  2/100 step  1 step/s")
    assert lines[-1] == "train:  100/100 step  in 1:40  loss 2.5"


def test_quick_work_says_nothing_without_a_terminal(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(over([1, 2, 3], "count", "items")) == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_a_dumb_terminal_gets_lines(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress("train", 10, "step") as bar:
        clock.now += 5
        bar.advance()
    assert "\x1b" not in capsys.readouterr().err


def test_standard_output_stays_free(
    screen: io.StringIO, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("train", 10, "step"):
        print("a result")
    assert capsys.readouterr().out == "a result\n"
    assert "a result" not in screen.getvalue()
