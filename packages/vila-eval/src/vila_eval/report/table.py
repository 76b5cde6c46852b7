"""The results table of a run, one row per measure, and the notes below it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vila_core.errors import listed
from vila_core.plugins.loader import load_plugins
from vila_eval.data.hub import FIXTURE_REVISION
from vila_eval.records.schema import JudgeSummary
from vila_eval.records.storage import JUDGE_SUMMARY, read_record
from vila_eval.report.failures import first_failure
from vila_eval.report.formatting import format_interval, format_value, words
from vila_eval.task import Task
from vila_eval.texts import one_line

if TYPE_CHECKING:
    from rich.table import Table

    from vila_eval.options import TaskOutcome
    from vila_eval.records.schema import Counts, TaskResult

INTERVAL = "95 % interval"
PLAIN_WIDTH = 400
"""Width of plain text in columns, wide enough that nothing wraps."""

COUNTS: dict[str, Callable[[Counts], int]] = {
    "failed": lambda counts: counts.failed,
    "unread": lambda counts: counts.unread,
    "judge failed": lambda counts: counts.judge_failed,
    "truncated": lambda counts: counts.truncated,
}
"""Columns of counts; all but the first are left out if every row has 0."""


DROPPABLE = ("truncated", "judge failed", "unread", "n")
"""Columns that narrow terminals leave out, in this order."""


def results_table(outcomes: Sequence[TaskOutcome], hidden: frozenset[str] = frozenset()) -> Table:
    """Return the table: measures over all samples with their 95 % intervals, the headline first.

    Groups are in the report. Columns in `hidden` are left out.
    """
    from rich.markup import escape
    from rich.table import Table

    counted = [outcome.result.counts for outcome in outcomes if outcome.result is not None]
    shown = {
        heading: count
        for heading, count in COUNTS.items()
        if heading not in hidden and (heading == "failed" or any(count(of_task) for of_task in counted))
    }
    numbers = [] if "n" in hidden else ["n"]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("task", no_wrap=True)
    table.add_column("measure")
    for heading in ("value", INTERVAL, *numbers, *shown):
        table.add_column(heading, justify="left" if heading == INTERVAL else "right", no_wrap=True)
    for outcome in outcomes:
        name = escape(outcome.planned.folder)
        if outcome.result is None:
            state = (
                "[red]error[/red]"
                if outcome.error is not None
                else f"[yellow]waits for {escape(outcome.waiting or 'nothing')}[/yellow]"
            )
            table.add_row(name, state)
            continue
        counts = [_marked(count(outcome.result.counts)) for count in shown.values()]
        for number, (measure, value, interval, n) in enumerate(_rows(outcome.result)):
            table.add_row(
                name if number == 0 else "",
                escape(measure) if number == 0 else f"[dim]{escape(measure)}[/dim]",
                value if number else f"[bold]{value}[/bold]",
                f"[dim]{interval}[/dim]",
                *([str(n)] if numbers else []),
                *(counts if number == 0 else ()),
            )
    return table


def _rows(result: TaskResult) -> list[tuple[str, str, str, int]]:
    """Return (measure, value, 95 % interval, n) of the measures over all samples, or one row without a value."""
    overall = [measure for measure in result.measures if measure.group is None]
    if not overall:
        return [("to submit" if result.submission else "no score", "–", "", result.counts.samples)]
    return [
        (
            words(measure.name),
            format_value(measure.value, measure.unit) + (" %" if measure.unit == "share" else ""),
            format_interval(measure.interval, measure.unit),
            measure.n,
        )
        for measure in overall
    ]


def _marked(count: int) -> str:
    return f"[yellow]{count}[/yellow]" if count else "0"


def table_notes(outcomes: Sequence[TaskOutcome]) -> list[str]:
    """Return the notes below the table: why tasks have no number, cost of judging, submission files, fixture data."""
    notes = [f"{outcome.planned.folder}: {outcome.error}" for outcome in outcomes if outcome.error is not None]
    notes += _tag_means(outcomes)
    notes += [note for outcome in outcomes if (note := _failure_note(outcome)) is not None]
    complete = [outcome.planned.folder for outcome in outcomes if outcome.was_complete]
    if complete:
        which = "All tasks were" if len(complete) == len(outcomes) else f"{listed(complete)}:"
        notes.append(f"{which} already complete: nothing was run again. Delete a task's folder to run it again.")
    notes += _judge_notes([outcome.folder for outcome in outcomes if outcome.waiting is None])
    for outcome in outcomes:
        submission = outcome.planned.task.submission
        if outcome.result is not None and outcome.result.submission is not None and submission is not None:
            notes.append(
                f"{outcome.planned.folder}: send {outcome.folder / outcome.result.submission} to {submission.server}"
            )
    made_up = sum(
        outcome.result is not None and outcome.result.data.get("revision") == FIXTURE_REVISION for outcome in outcomes
    )
    if made_up:
        several = f"{made_up} of {len(outcomes)} tasks ran" if made_up < len(outcomes) else "All tasks ran"
        notes.append(
            f"{several} on made-up rows in the dataset's schema (--fixtures). Their numbers say nothing about the "
            "model."
        )
    return notes


def _failure_note(outcome: TaskOutcome) -> str | None:
    """Return how many samples failed and why the first did; None if none failed."""
    counts = outcome.result.counts if outcome.result is not None else None
    if counts is None or not counts.failed:
        return None
    reason = first_failure(outcome.folder)
    which = f"all {counts.samples:,}" if counts.failed == counts.samples else f"{counts.failed:,} of {counts.samples:,}"
    return f"{outcome.planned.folder}: {which} samples failed and count as wrong" + (
        "." if reason is None else f". The first: {one_line(reason, 300)}"
    )


def _tag_means(outcomes: Sequence[TaskOutcome]) -> list[str]:
    """Return the mean of the headlines of each tag of which all tasks ran, if there are several and all are shares."""
    ran = {outcome.planned.task.name for outcome in outcomes}
    registered = [entry.item for entry in load_plugins().tasks.items()]
    notes: list[str] = []
    for tag in dict.fromkeys(tag for outcome in outcomes for tag in outcome.planned.task.tags):
        of_tag = [outcome.result for outcome in outcomes if tag in outcome.planned.task.tags]
        headlines = [result.headline for result in of_tag if result is not None]
        shares = [found.value for found in headlines if found is not None and found.unit == "share"]
        wanted = {task.name for task in registered if isinstance(task, Task) and tag in task.tags}
        if len(shares) == len(of_tag) > 1 and wanted <= ran:
            mean = format_value(sum(shares) / len(shares), "share")
            notes.append(f"Mean of the {len(shares)} tasks of {tag}: {mean} %.")
    return notes


def _judge_notes(folders: Sequence[Path]) -> list[str]:
    """Return one line per judge, which sums up the `judge.json` of all tasks."""
    found = [read_record(JudgeSummary, folder / JUDGE_SUMMARY) for folder in folders]
    summaries = [summary for summary in found if summary is not None]
    notes: list[str] = []
    for model in dict.fromkeys(summary.model for summary in summaries):
        of_model = [summary for summary in summaries if summary.model == model]
        dollars = [summary.dollars for summary in of_model if summary.dollars is not None]
        cost = f", ${sum(dollars):,.2f}" if len(dollars) == len(of_model) else ""
        notes.append(
            f"Judge {model}, in all runs: {sum(summary.requests for summary in of_model):,} requests, "
            f"{sum(summary.prompt_tokens for summary in of_model):,} tokens "
            f"and {sum(summary.completion_tokens for summary in of_model):,} in reply{cost}; "
            f"stored replies used: {sum(summary.reused for summary in of_model):,}; "
            f"samples without a verdict: {sum(summary.failed for summary in of_model):,}."
        )
    return notes


def print_table(build: Callable[[frozenset[str]], Table], droppable: Sequence[str] = ()) -> None:
    """Print a table, styled for a terminal and as plain text for a file or a pipe.

    Args:
        build: makes the table without the columns that it is given.
        droppable: columns that are left out, in this order, where a terminal is too narrow for names and numbers.
    """
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        print(as_text(build(frozenset())))
        return
    hidden: list[str] = []
    table = build(frozenset())
    for name in droppable:
        if console.measure(table, options=console.options.update(width=PLAIN_WIDTH)).minimum <= console.width:
            break
        hidden.append(name)
        table = build(frozenset(hidden))
    console.print(table)
    if hidden:
        text = f"Columns left out for lack of space: {', '.join(hidden)}. A wider terminal or --json shows them."
        console.print(text, style="dim", markup=False, highlight=False)


def as_text(table: Table) -> str:
    """Return a table as plain text, without colors and without cutting anything off."""
    from rich.console import Console

    file = io.StringIO()
    Console(file=file, width=PLAIN_WIDTH, no_color=True, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip("\n").split("\n"))
