"""`vila-eval compare`: compare two runs sample by sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vila_core.cli.options import json_option
from vila_eval.report.formatting import (
    format_difference,
    format_error,
    format_p_value,
    format_reference,
    format_value,
    shorten,
    words,
)
from vila_eval.texts import one_line, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from vila_eval.report.comparison import RunComparison, TaskComparison

LONGEST = 200
"""Number of characters of an answer that are printed."""


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A model's results, or one task's folder in it.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one; differences are B minus A.")],
    flips: Annotated[
        int, typer.Option(metavar="N", min=0, help="Show N samples of each task that the runs score differently.")
    ] = 0,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the comparison as a page.")] = None,
    allow_different: Annotated[
        bool,
        typer.Option(
            "--allow-different", metavar="", help="Compare even if task version, data or settings differ, and say so."
        ),
    ] = False,
    as_json: Annotated[bool, json_option("Print a JSON object, with all flipped samples.")] = False,
) -> None:
    """Compare two runs sample by sample: differences with standard errors and p-values, gains and losses.

    [bold]Example:[/bold] vila-eval compare results/model-a results/model-b --flips 5
    """
    from vila_eval.report.comparison import compare_runs

    comparison = compare_runs(first.expanduser(), second.expanduser(), allow_different=allow_different)
    if html is not None:
        from vila_eval.report.comparison_page import write_comparison

        write_comparison(comparison, html.expanduser())
    if as_json:
        typer.echo(json.dumps(comparison.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False))
        return
    from rich.console import Console

    console = Console()
    _print(comparison, console)
    if flips:
        for task in comparison.tasks:
            _print_flips(task, flips, console)
    if html is not None:
        console.print(f"\nWrote {html}", markup=False, highlight=False, soft_wrap=True)


def _print(comparison: RunComparison, console: Console) -> None:
    from rich.markup import escape

    from vila_eval.report.table import print_table

    console.print(
        f"[dim]A[/dim] {escape(comparison.first.name)}  [dim]B[/dim] {escape(comparison.second.name)}\n",
        highlight=False,
    )
    print_table(lambda hidden: _table(comparison, hidden), DROPPABLE)
    for line in comparison.notes:
        console.print(line, style="dim", markup=False, highlight=False, soft_wrap=not console.is_terminal)


DROPPABLE = ("p (Holm)", "+/−", "n", "p")
"""Columns that narrow terminals leave out, in this order."""


def _table(comparison: RunComparison, hidden: frozenset[str]) -> Table:
    """Return the table without the columns in `hidden`, one row per measure.

    The headline's row also has n and the p-value adjusted for the number of tasks. +/− counts samples gained and lost.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("task", no_wrap=True)
    table.add_column("measure")
    headings = [name for name in ("A", "B", "B − A", "", "p", "p (Holm)", "+/−", "n") if name not in hidden]
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "" else "right", no_wrap=True)
    for task in comparison.tasks:
        if not task.measures:
            table.add_row(escape(task.task), "[dim]scored elsewhere[/dim]")
        for number, measure in enumerate(task.measures):
            is_headline = number == 0
            cells = {
                "A": format_value(measure.first, measure.unit),
                "B": format_value(measure.second, measure.unit),
                "B − A": f"[bold]{format_difference(measure.difference, measure.unit)}[/bold]",
                "": f"[dim]{format_error(measure.standard_error, measure.unit)}[/dim]",
                "p": format_p_value(measure.p_value),
                "p (Holm)": format_p_value(task.adjusted_p_value) if is_headline else "",
                "+/−": "" if measure.gained is None else f"{measure.gained}/{measure.lost}",
                "n": str(task.paired) if is_headline else "",
            }
            table.add_row(
                escape(task.task) if is_headline else "",
                escape(words(measure.name)) if is_headline else f"[dim]{escape(words(measure.name))}[/dim]",
                *(cells[heading] for heading in headings),
            )
    return table


def _print_flips(task: TaskComparison, most: int, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    if not task.flips:
        return
    shown = task.flips[:most]
    console.print(
        f"\n[bold]{escape(task.task)}[/bold]: showing {len(shown)} of {len(task.flips):,} samples scored differently",
        highlight=False,
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("sample", "A", "B", "answer of A", "answer of B", "reference"):
        table.add_column(heading, justify="right" if len(heading) == 1 else "left", overflow="fold")
    for flip in shown:
        texts = (flip.first_answer, flip.second_answer, format_reference(flip.reference))
        table.add_row(
            escape(one_line(flip.id)),
            f"{flip.first:g}",
            f"{flip.second:g}",
            *(escape(shorten(printable(text), LONGEST)) for text in texts),
        )
    console.print(table)
