"""Progress reporting: bars on a terminal, otherwise an occasional line. Both write to standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

SECONDS_BETWEEN_LINES = 30.0


class Bars:
    """A bar for the current task, with rate and time left, and one for all tasks. Use it as a context manager.

    Args:
        console: a terminal.
        names: names of the tasks, as `start` will get them.
    """

    def __init__(self, console: Console, names: Sequence[str]):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
        )
        self._names = list(names)
        self._bars = Progress(*columns, console=console, transient=True)
        self._current: TaskID | None = None
        self._name, self._pace = "", Pace(0, 0)
        self._overall = self._bars.add_task("[bold]all tasks[/bold]", total=len(names), pace="")

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def start(self, name: str, total: int, done: int) -> None:
        from rich.markup import escape

        self._name, self._pace = name, Pace(total, done)
        # Tasks that were already complete, or failed before their first sample, are never started.
        if name in self._names:
            self._bars.update(self._overall, completed=self._names.index(name))
        self._current = self._bars.add_task(escape(name), total=total, completed=done, pace="")

    def advance(self, samples: int) -> None:
        assert self._current is not None, "advance before start"
        self._pace.advance(samples)
        self._bars.update(self._current, advance=samples, pace=str(self._pace))

    def tell(self, text: str) -> None:
        self._bars.console.print(f"{self._name}: {text}", markup=False, highlight=False)

    def finish(self) -> None:
        assert self._current is not None, "finish before start"
        self.tell(self._pace.ending)
        self._bars.remove_task(self._current)
        self._current = None


class Lines:
    """A line when a task begins, every half minute, and when it ends. Use it as a context manager."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._name = ""
        self._pace = Pace(0, 0, clock)
        self._told = 0.0

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def start(self, name: str, total: int, done: int) -> None:
        self._name, self._pace, self._told = name, Pace(total, done, self._clock), self._clock()
        self.tell(f"{total} samples" + (f", {done} of them done before" if done else ""))

    def advance(self, samples: int) -> None:
        self._pace.advance(samples)
        if self._clock() - self._told >= SECONDS_BETWEEN_LINES:
            self._told = self._clock()
            self.tell(f"{self._pace.done} of {self._pace.total}, {self._pace}")

    def tell(self, text: str) -> None:
        typer.echo(f"{self._name}: {text}", err=True)

    def finish(self) -> None:
        self.tell(self._pace.ending)


class Pace:
    """Rate and remaining time of a task. Samples done before the start do not count for the rate."""

    def __init__(self, total: int, done: int, clock: Callable[[], float] = time.monotonic):
        self.total, self.done, self._before = total, done, done
        self._clock, self._begun = clock, clock()

    def advance(self, samples: int) -> None:
        self.done += samples

    @property
    def seconds(self) -> float:
        return self._clock() - self._begun

    @property
    def ending(self) -> str:
        return (
            f"done in {clock_time(self.seconds)}"
            if self.done >= self.total
            else f"stopped at {self.done} of {self.total}"
        )

    def __str__(self) -> str:
        rate = (self.done - self._before) / max(self.seconds, 1e-3)
        return f"{rate:.1f} a second, {clock_time((self.total - self.done) / rate)} left" if rate else ""


def clock_time(seconds: float) -> str:
    """Return "1:02:03" or "2:03"."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
