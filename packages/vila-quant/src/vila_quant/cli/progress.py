"""How far a run is: a bar with the time left on a terminal, a line now and then elsewhere. Both write to standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from vila_quant.progress import Progress

SECONDS_BETWEEN_LINES = 20.0


@contextmanager
def open_progress() -> Generator[Progress]:
    """Yield what shows a run's progress on standard error."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
    )
    with Progress(
        *columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=Console(stderr=True)
    ) as bars:
        yield Bars(bars)


class Bars:
    """A bar for each phase, with the time left."""

    def __init__(self, bars: RichProgress):
        self._bars = bars
        self._task: TaskID | None = None

    def start(self, phase: str, total: int, done: int = 0) -> None:
        self._task = self._bars.add_task(phase, total=total, completed=done, note="")

    def advance(self, note: str = "") -> None:
        assert self._task is not None, "advance before start"
        self._bars.update(self._task, advance=1, note=note)

    def warn(self, message: str) -> None:
        self._bars.console.print(f"Warning: {message}", markup=False, highlight=False, style="yellow")


class Lines:
    """A line when a phase begins, every so often, and when it ends."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._phase, self._total, self._done, self._before = "", 0, 0, 0
        self._begun = self._told = 0.0

    def start(self, phase: str, total: int, done: int = 0) -> None:
        self._phase, self._total, self._done, self._before = phase, total, done, done
        self._begun = self._told = self._clock()
        self._tell(f"{total} steps" + (f", {done} of them done before" if done else ""))

    def advance(self, note: str = "") -> None:
        self._done += 1
        now = self._clock()
        if self._done < self._total and now - self._told < SECONDS_BETWEEN_LINES:
            return
        self._told = now
        spent = now - self._begun
        left = spent / (self._done - self._before) * (self._total - self._done)
        self._tell(
            f"{self._done} of {self._total}, {spent:.0f} s"
            + (f", {left:.0f} s left" if left else "")
            + (f"; {note}" if note else "")
        )

    def warn(self, message: str) -> None:
        typer.echo(f"Warning: {message}", err=True)

    def _tell(self, text: str) -> None:
        typer.echo(f"{self._phase}: {text}", err=True)
