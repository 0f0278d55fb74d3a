"""Progress of long work: bars with percentage and time left on a terminal, plain lines elsewhere.

Everything goes to standard error, so that standard output stays free for tables and `--json`. Bars
that run at the same time stand below each other, and go when their work is done. Where a terminal
is narrow, percentage, time left and loss stay; all else goes first.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.text import Text

from chopjax import interrupts
from chopjax.errors import escaped, readable

Item = TypeVar("Item")

FIRST_LINE, LINES_APART = 2.0, 10.0  # seconds to the first plain line, and between them
WINDOW, TICKS = 30.0, 8  # the time left is judged by the last seconds, or so many ticks
BURST = 0.2  # seconds in which what comes is one tick: the answers of a batch come all at once
WORTH_A_LINE = 10.0  # seconds that work must have taken to leave a line
SPINNER = {False: "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", True: "|/-\\"}
BAR = 16  # characters
ALWAYS = "loss"  # the value that a narrow terminal still has


def say(message: str) -> None:
    """A line for people on standard error; standard output belongs to results."""
    if _display is None:
        print(readable(message), file=sys.stderr, flush=True)
    else:  # above the bars, and in one piece however narrow the terminal
        _display.console.print(Text(readable(message)), soft_wrap=True, highlight=False)


def _count(value: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5 or unit == "T":
            return f"{value:.3g}{unit}" if unit else f"{value:.4g}"
        value /= 1000
    raise AssertionError("unreachable")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Bar:
    """Counts `done` of `total` and carries a few values to show beside it (loss, MFU, …)."""

    def __init__(self, label: str, total: float | None, unit: str, done: float):
        self.label, self.total, self.unit = escaped(label), total or None, unit
        self.done = self.begun_at = done
        self.values: dict[str, str] = {}
        self._start = self._last_line = time.monotonic()
        self._has_line = False
        self._ticks: deque[tuple[float, float]] = deque()  # (when, done)
        self._burst = self._start  # when the last of them began

    def advance(self, amount: float = 1, **values: object) -> None:
        self.update(self.done + amount, **values)

    def update(self, done: float, **values: object) -> None:
        """Set the count; `values` are shown as `name value`, numbers with four digits.

        A piece of work is done: where a signal asks to stop, this raises (interrupts.check).
        """
        interrupts.check()
        now = time.monotonic()
        if done != self.done:
            self.done = done
            self._tick(now)
        for name, value in values.items():
            self.values[name] = f"{value:.4g}" if isinstance(value, float) else str(value)
        if not _on_terminal():
            apart = LINES_APART if self._has_line else FIRST_LINE
            if now - self._last_line >= apart:
                self._last_line, self._has_line = now, True
                print("  ".join([f"{self.label}:", *self._parts(now)]), file=sys.stderr, flush=True)

    def expect(self, total: float | None) -> None:
        """The total, where it comes to light on the way."""
        self.total = total or None

    def _tick(self, now: float) -> None:
        ticks = self._ticks
        if ticks and now - self._burst < BURST:
            ticks.pop()
        else:
            self._burst = now
        ticks.append((now, self.done))
        while len(ticks) > TICKS and now - ticks[1][0] > WINDOW:
            ticks.popleft()

    # ------------------------------------------------------------------------ What it says

    def seconds_left(self, now: float) -> float | None:
        """By the latest ticks; from the second on, the first one, which may have compiled, does
        not count. None where it cannot be known."""
        if self.total is None or not self._ticks:
            return None
        first = self._ticks[0] if len(self._ticks) > 1 else (self._start, self.begun_at)
        (begun, before), (ended, after) = first, self._ticks[-1]
        if ended <= begun or after <= before:
            return None
        seconds = (self.total - self.done) * (ended - begun) / (after - before)
        return max(0.0, seconds - (now - ended))

    def _percent(self) -> str:
        """Never 100: as long as a bar is there, something is still done."""
        assert self.total is not None
        return f"{min(99, int(100 * self.done / self.total)):d} %"

    def _left(self, now: float) -> str:
        if self.total is not None and self.done >= self.total:
            return "finishing"
        seconds = self.seconds_left(now)
        return "-:-- left" if seconds is None else f"{_duration(seconds)} left"

    def _amount(self) -> str:
        of = f"/{_count(self.total)}" if self.total is not None else ""
        return f"{_count(self.done)}{of}{'' if self.unit == 'B' else ' '}{self.unit}"

    def _rate(self, now: float) -> str:
        rate = (self.done - self.begun_at) / max(now - self._start, 1e-9)
        return f"{_count(rate)}{'' if self.unit == 'B' else ' '}{self.unit}/s"

    def _parts(self, now: float) -> list[str]:
        """What matters most comes first."""
        values = [f"{name} {value}" for name, value in self.values.items()]
        always = [text for text in values if text.startswith(f"{ALWAYS} ")]
        others = [text for text in values if text not in always]
        elapsed = _duration(now - self._start)
        rate = [self._rate(now)] if self.done != self.begun_at else []
        if self.total is not None:
            parts = [self._percent(), self._left(now), *always, self._amount(), *others]
            return [*parts, *rate, f"{elapsed} so far"]
        amount = [self._amount()] if rate else []  # else work of which nothing is counted
        return [*amount, elapsed, *values, *rate]

    def line(self, width: int, ascii_only: bool = False) -> Text:
        """One line of a terminal, of fewer than `width` characters."""
        now = time.monotonic()
        parts = self._parts(now)
        frames = SPINNER[ascii_only]
        spinner, room = frames[int(now * 8) % len(frames)], width - 3
        must = 1 + (self.total is not None) + any(p.startswith(f"{ALWAYS} ") for p in parts)
        shown: list[str] = []
        for number, part in enumerate(parts):
            # The label may shrink for what must be there, and not for the rest.
            kept = 0 if number < must else min(len(self.label), max(12, width // 4)) + 2
            if sum(len(text) + 2 for text in shown) + len(part) + kept > room:
                break
            shown.append(part)
        left = room - sum(len(text) + 2 for text in shown)
        label = self.label
        if len(label) > left:
            dots = "..." if ascii_only else "…"
            label = label[: left - len(dots)] + dots if left >= 6 else ""
        left -= len(label)
        text = Text(f"{spinner} ", no_wrap=True, end="").append(label, "bold")
        if self.total is not None and left >= BAR + 2:
            text.append("  ").append_text(self._drawn(ascii_only))
        for part in shown:
            text.append("  " if text.plain.strip(spinner + " ") else "").append(part)
        return text

    def _drawn(self, ascii_only: bool) -> Text:
        assert self.total is not None
        filled = min(BAR - 1, int(BAR * self.done / self.total))
        full, empty = ("#", "-") if ascii_only else ("━", "╌")
        return Text(full * filled, "cyan").append(empty * (BAR - filled), "dim")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield self.line(options.max_width, options.ascii_only)

    def _last_word(self) -> None:
        """What was done, where it was counted and took its time."""
        seconds = time.monotonic() - self._start
        counted = self.done != self.begun_at
        if self._has_line or (_on_terminal() and counted and seconds >= WORTH_A_LINE):
            loss = [f"{ALWAYS} {self.values[ALWAYS]}"] if ALWAYS in self.values else []
            say("  ".join([f"{self.label}:", self._amount(), f"in {_duration(seconds)}", *loss]))


# -------------------------------------------------------------------------------- The display

_bars: list[Bar] = []  # that are shown
_display: Live | None = None


class _Bars:
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        for bar in list(_bars):
            yield bar.line(options.max_width, options.ascii_only)
            yield Text("")


def _console() -> Console:
    return Console(stderr=True)


def _on_terminal() -> bool:
    """Whether standard error can draw bars."""
    return _display is not None or (sys.stderr.isatty() and not _console().is_dumb_terminal)


@contextlib.contextmanager
def progress(
    label: str, total: float | None = None, unit: str = "it", done: float = 0
) -> Iterator[Bar]:
    """Show progress while the block runs.

    total: None where it is not known; a bar that is never advanced shows that work goes on.
    `unit="B"` shows bytes in binary-free SI units; `done` is where a resumed job starts.
    """
    bar = Bar(label, total, unit, done)
    with _shown(bar):
        yield bar
    bar._last_word()


def over(items: Sequence[Item], label: str, unit: str) -> Iterator[Item]:
    """The items, with a bar that counts those that were dealt with."""
    with progress(label, len(items), unit) as bar:
        for item in items:
            yield item
            bar.advance()


@contextlib.contextmanager
def _shown(bar: Bar) -> Iterator[None]:
    global _display
    if not _on_terminal():
        yield
        return
    _bars.append(bar)
    if _display is None:
        _display = Live(
            _Bars(),
            console=_console(),
            refresh_per_second=8,
            transient=True,
            # What goes to a file must not be sent to the terminal.
            redirect_stdout=sys.stdout.isatty(),
        )
        _display.start()
        _display.console.show_cursor(True)  # a process that is killed could not give it back
    try:
        yield
    finally:
        _bars.remove(bar)
        if not _bars:
            display, _display = _display, None
            display.stop()
