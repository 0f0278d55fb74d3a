"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere.

Everything goes to standard error, so that standard output stays free for tables and `--json`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from chopjax import interrupts

LINE_SECONDS = 10.0  # a plain line at most this often


def say(message: str) -> None:
    """A line for people on standard error; standard output belongs to results."""
    print(message, file=sys.stderr, flush=True)


def _count(value: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 1000 or unit == "T":
            return f"{value:.3g}{unit}" if unit else f"{value:.4g}"
        value /= 1000
    raise AssertionError("unreachable")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Bar:
    """Counts `done` of `total` and carries a few values to show beside it (loss, MFU, …)."""

    def __init__(self, label: str, total: float | None, unit: str, done: float):
        self.label, self.total, self.unit = label, total, unit
        self.done = self.begun_at = done
        self.values: dict[str, str] = {}
        self._start = self._last_line = time.monotonic()
        self._rich: Progress | None = None
        self._console = Console(stderr=True)
        if self._console.is_terminal:
            amount = (
                [DownloadColumn(), TransferSpeedColumn()]
                if unit == "B"
                else [TextColumn("{task.fields[amount]}")]
            )
            self._rich = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                *amount,
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[extra]}"),
                console=self._console,
            )
            self._task = self._rich.add_task(
                label, total=total, completed=int(done), extra="", amount=self._amount()
            )

    def rate(self) -> float:
        """Units a second since the bar began."""
        return (self.done - self.begun_at) / max(time.monotonic() - self._start, 1e-9)

    def advance(self, amount: float = 1, **values: object) -> None:
        self.update(self.done + amount, **values)

    def update(self, done: float, **values: object) -> None:
        """Set the count; `values` are shown as `name value`, numbers with four digits.

        A piece of work is done: where a signal asks to stop, this raises (interrupts.check).
        """
        interrupts.check()
        self.done = done
        for name, value in values.items():
            self.values[name] = f"{value:.4g}" if isinstance(value, float) else str(value)
        if self._rich:
            self._rich.update(
                self._task, completed=done, extra=Text(self._extra()), amount=self._amount()
            )
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._line()

    def _extra(self) -> str:
        return "  ".join(f"{name} {value}" for name, value in self.values.items())

    def _amount(self) -> str:
        of = f"/{_count(self.total)}" if self.total is not None else ""
        return f"{_count(self.done)}{of} {self.unit}  {_count(self.rate())} {self.unit}/s"

    def _line(self) -> None:
        self._last_line = time.monotonic()
        parts = [f"{self.label}: {self._amount()}"]
        if self.total and self.done > self.begun_at:
            left = (self.total - self.done) / max(self.rate(), 1e-9)
            parts.append(f"{100 * self.done / self.total:.0f} %  left {_duration(left)}")
        if self.values:
            parts.append(self._extra())
        say("  ".join(parts))


@contextlib.contextmanager
def progress(
    label: str, total: float | None = None, unit: str = "it", done: float = 0
) -> Iterator[Bar]:
    """Show progress while the block runs.

    `unit="B"` shows bytes in binary-free SI units; `done` is where a resumed job starts.
    """
    bar = Bar(label, total, unit, done)
    with bar._rich if bar._rich is not None else contextlib.nullcontext():
        yield bar
    if bar._rich is None and time.monotonic() - bar._start >= LINE_SECONDS:
        bar._line()
