"""Progress of long runs: bars on a terminal, otherwise a line from time to time. Both write to standard error.

    with open_progress("samples") as progress:
        progress.start("chartqa", total=2500)
        for batch in batches:
            progress.advance(len(batch))
        progress.finish()

Library functions take a `Progress` and default to `NoProgress()`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from vila_core.cli.terminal import can_redraw

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn, TaskID

SECONDS_BETWEEN_LINES = 30.0
BYTES = "bytes"
"""The unit that bars show as MB and MB/s."""


class Progress(Protocol):
    """Receives the progress of a run: phases (or tasks) one after the other, each with a number of steps."""

    def start(self, name: str, total: int, done: int = 0) -> None:
        """Begin a phase of `total` steps, of which an earlier run finished `done`."""
        ...

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count `steps` as done; `note` is shown beside the bar, such as the current error."""
        ...

    def report(self, message: str) -> None:
        """Print a line about the current phase."""
        ...

    def warn(self, message: str) -> None:
        """Print a warning; the run continues."""
        ...

    def finish(self, *, failed: bool = False) -> None:
        """End the phase, complete or not. `start` and the end of `open_progress` do this too.

        Args:
            failed: what follows the steps failed, such as writing their result: the phase is not done.
        """
        ...


class NoProgress:
    """Ignores progress and warnings."""

    def start(self, name: str, total: int, done: int = 0) -> None:
        pass

    def advance(self, steps: int = 1, note: str = "") -> None:
        pass

    def report(self, message: str) -> None:
        pass

    def warn(self, message: str) -> None:
        pass

    def finish(self, *, failed: bool = False) -> None:
        pass


@contextmanager
def open_progress(unit: str = "steps", phases: Sequence[str] = (), *, lines: bool = True) -> Generator[Progress]:
    """Yield a `Progress` on standard error: bars on a terminal, else lines.

    Args:
        unit: what steps are, in the plural; `BYTES` shows sizes.
        phases: names of all phases, if known: a second bar shows how many are done.
        lines: whether to print lines if standard error is not a terminal, or one that cannot move its cursor.
    """
    if not can_redraw() and not lines:
        yield NoProgress()
        return
    if not can_redraw():
        with _finished(ProgressLines(unit)) as printed:
            yield printed
        return
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    bars = RichProgress(*_columns(unit), console=Console(stderr=True))
    with bars, _finished(ProgressBars(bars, unit, phases)) as progress:
        yield progress


@contextmanager
def _finished(progress: Progress) -> Generator[Progress]:
    """End the phase that runs at the end of the block."""
    try:
        yield progress
    except BaseException:
        progress.finish(failed=True)
        raise
    progress.finish()


@contextmanager
def show_phases(first: str) -> Generator[Callable[[str], None]]:
    """Yield a function that names what runs now; a spinner shows it with its seconds, if standard error is a terminal.

    The last name stays no longer than the `with` block.
    """
    if not can_redraw():
        yield lambda phase: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress as RichProgress
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(escape(first), total=None)
        current = first

        def show(phase: str) -> None:
            nonlocal task, current
            if phase.partition(":")[0] != current.partition(":")[0]:  # "Loading: 3 of 16 GB" keeps its seconds
                bars.remove_task(task)
                task = bars.add_task("", total=None)
            current = phase
            bars.update(task, description=escape(phase))

        yield show


def _columns(unit: str) -> tuple[ProgressColumn, ...]:
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn

    count = DownloadColumn() if unit == BYTES else MofNCompleteColumn()
    return (TextColumn("{task.description}"), BarColumn(), count, TextColumn("{task.fields[note]}"))


class ProgressBars:
    """One bar per phase with rate and time left, and one for all phases if their names are known."""

    def __init__(
        self, bars: RichProgress, unit: str, phases: Sequence[str] = (), clock: Callable[[], float] = time.monotonic
    ):
        self._bars, self._unit, self._phases, self._clock = bars, unit, list(phases), clock
        self._name, self._pace = "", Pace(0, 0, unit, clock)
        self._current: TaskID | None = None
        self._overall = bars.add_task("[bold]all[/bold]", total=len(phases), note="") if phases else None

    def start(self, name: str, total: int, done: int = 0) -> None:
        from rich.markup import escape

        self.finish()
        self._name, self._pace = name, Pace(total, done, self._unit, self._clock)
        # A phase that was complete already, or that failed before its first step, never starts.
        if self._overall is not None and name in self._phases:
            self._bars.update(self._overall, completed=self._phases.index(name))
        self._current = self._bars.add_task(escape(name), total=total, completed=done, note="")

    def advance(self, steps: int = 1, note: str = "") -> None:
        from rich.markup import escape

        assert self._current is not None, "advance before start"
        self._pace.advance(steps)
        shown = f"{self._pace}; {note}" if note else str(self._pace)
        self._bars.update(self._current, advance=steps, note=escape(shown))

    def report(self, message: str) -> None:
        self._bars.console.print(f"{self._name}: {message}", markup=False, highlight=False)

    def warn(self, message: str) -> None:
        self._bars.console.print(f"Warning: {message}", markup=False, highlight=False, style="yellow")

    def finish(self, *, failed: bool = False) -> None:
        if self._current is None:
            return
        self.report(self._pace.summary(failed=failed))
        self._bars.remove_task(self._current)
        self._current = None


class ProgressLines:
    """A line when a phase begins, every half minute, and when it ends."""

    def __init__(self, unit: str, clock: Callable[[], float] = time.monotonic):
        self._unit, self._clock = unit, clock
        self._name = ""
        self._pace = Pace(0, 0, unit, clock)
        self._last_line = 0.0
        self._running = False

    def start(self, name: str, total: int, done: int = 0) -> None:
        self.finish()
        self._running = True
        self._name, self._pace, self._last_line = name, Pace(total, done, self._unit, self._clock), self._clock()
        begun = "started" if total == 1 else _count(total, self._unit)
        self.report(begun + (f", {_count(done, self._unit)} already done" if done else ""))

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._pace.advance(steps)
        if self._clock() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = self._clock()
            parts = f"{self._pace.done_of_total}, {self._pace}"
            self.report(f"{parts}; {note}" if note else parts)

    def report(self, message: str) -> None:
        print(f"{self._name}: {message}", file=sys.stderr, flush=True)

    def warn(self, message: str) -> None:
        print(f"Warning: {message}", file=sys.stderr, flush=True)

    def finish(self, *, failed: bool = False) -> None:
        if self._running:
            self._running = False
            self.report(self._pace.summary(failed=failed))


class Pace:
    """Rate and time left of a phase. Steps that an earlier run did do not count towards the rate."""

    def __init__(self, total: int, done: int, unit: str, clock: Callable[[], float] = time.monotonic):
        self.total, self.done, self._before = total, done, done
        self._unit, self._clock, self._started = unit, clock, clock()

    def advance(self, steps: int) -> None:
        self.done += steps

    @property
    def seconds(self) -> float:
        return self._clock() - self._started

    @property
    def done_of_total(self) -> str:
        if self._unit == BYTES:
            return f"{_count(self.done, self._unit)} of {_count(self.total, self._unit)}"
        return f"{self.done} of {self.total}"

    def summary(self, *, failed: bool) -> str:
        """Return how the phase ended, such as "done in 2:03"."""
        is_done = self.done >= self.total and not failed
        return f"done in {clock_time(self.seconds)}" if is_done else f"stopped at {self.done_of_total}"

    def __str__(self) -> str:
        rate = (self.done - self._before) / max(self.seconds, 1e-3)
        if not rate:
            return ""
        speed = f"{rate / 1e6:.0f} MB/s" if self._unit == BYTES else _speed(rate, self._unit)
        return f"{speed}, {clock_time((self.total - self.done) / rate)} left"


def clock_time(seconds: float) -> str:
    """Return "1:02:03" or "2:03"."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def _count(number: int, unit: str) -> str:
    return f"{number / 1e6:.1f} MB" if unit == BYTES else f"{number} {unit}"


def _speed(rate: float, unit: str) -> str:
    """Return a rate per second, or, if it is slow, the seconds of one unit."""
    return f"{rate:.1f} {unit}/s" if rate >= 0.2 else f"{1 / rate:.0f} s per {unit.removesuffix('s')}"
