"""Running a plan from the command line: progress, then the table, the report and the experiment tracker."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import typer

from vila_core.cli.progress import NoProgress, open_progress
from vila_eval.options import ModelOptions, Planned, Rank, RunOptions, TaskOutcome
from vila_eval.report.table import print_table, results_table, table_notes
from vila_eval.report.tracking import Tracker, check_installed, report_to
from vila_eval.running.runner import evaluate


def run_plan(
    model: ModelOptions,
    plan: Sequence[Planned],
    options: RunOptions,
    rank: Rank | None,
    *,
    tracker: Tracker | None,
    as_json: bool,
) -> int:
    """Run the tasks, print their outcomes, and return the exit code: 1 if a task ended in an error.

    Of several processes (`rank`), only the first prints.
    """
    if tracker is not None:
        check_installed(tracker)
    is_first = rank is None or rank.rank == 0
    try:
        if is_first:
            with open_progress("samples", [planned.folder for planned in plan]) as progress:
                outcomes = evaluate(model, plan, options, progress, rank)
        else:
            outcomes = evaluate(model, plan, options, NoProgress(), rank)
    except KeyboardInterrupt:
        typer.echo("Stopped. The answers so far are kept: run the same command to continue.", err=True)
        raise typer.Exit(130) from None
    if not is_first:
        return int(any(outcome.error is not None for outcome in outcomes))
    if not as_json:
        print_outcomes(outcomes)
    report = None
    if any(outcome.result is not None for outcome in outcomes):
        report = _report(model_folder(outcomes[0]), tracker)
    if as_json:
        typer.echo(
            json.dumps(
                {"tasks": [as_dict(outcome) for outcome in outcomes], "report": report and str(report)}, indent=2
            )
        )
    elif report is not None:
        typer.echo(f"Report: {report}")
    return int(any(outcome.error is not None for outcome in outcomes))


def print_outcomes(outcomes: Sequence[TaskOutcome]) -> None:
    """Print the table and its notes."""
    print_table(results_table(outcomes))
    if notes := table_notes(outcomes):
        typer.echo()
    for note in notes:
        typer.echo(note)


def model_folder(outcome: TaskOutcome) -> Path:
    """Return the model's folder: the task's folder without the task's own parts ("vila/count" has two)."""
    return outcome.folder.parents[len(PurePosixPath(outcome.planned.folder).parts) - 1]


def as_dict(outcome: TaskOutcome) -> dict[str, object]:
    """Return an outcome as a JSON object."""
    return {
        "task": outcome.planned.folder,
        "folder": str(outcome.folder),
        "result": None if outcome.result is None else outcome.result.model_dump(mode="json"),
        "error": outcome.error,
        "waiting": outcome.waiting,
    }


def _report(folder: Path, tracker: Tracker | None) -> Path:
    from vila_eval.report.html import write_report

    report = write_report(folder)
    if tracker is not None:
        report_to(tracker, folder)
    return report
