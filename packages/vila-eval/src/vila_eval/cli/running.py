"""Running a plan from the command line: progress, then the table, the report and the experiment tracker."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import typer

from vila_core.cli.progress import NoProgress, open_progress
from vila_core.signal_handlers import signal_handler
from vila_eval.errors import describe_exception
from vila_eval.options import ModelOptions, Planned, Rank, RunOptions, TaskOutcome
from vila_eval.report.table import DROPPABLE, print_table, results_table, table_notes
from vila_eval.report.tracking import Tracker, check_installed, report_to
from vila_eval.running.identity import model_name
from vila_eval.running.runner import evaluate

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes after Ctrl-C and SIGTERM."""


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
    root = options.output_dir / model_name(model)
    try:
        with signal_handler(signal.SIGTERM, _terminate):
            if is_first:
                with open_progress("samples", [planned.folder for planned in plan]) as progress:
                    outcomes = evaluate(model, plan, options, progress, rank)
            else:
                outcomes = evaluate(model, plan, options, NoProgress(), rank)
            failed = any(outcome.error is not None for outcome in outcomes)
            if not is_first:
                return int(failed)
            if not as_json:
                print_outcomes(outcomes)
            report = None
            if any(outcome.result is not None for outcome in outcomes):
                report, problem = _report(model_folder(outcomes[0]), tracker)
                failed = failed or problem is not None
                if problem is not None:
                    typer.echo(problem, err=True)
    except KeyboardInterrupt as stopped:
        typer.echo(
            f"Stopped. The answers so far are kept in '{root}': run the same command to continue.",
            err=True,
        )
        raise typer.Exit(TERMINATED if isinstance(stopped, _Terminated) else INTERRUPTED) from None
    if as_json:
        typer.echo(
            json.dumps(
                {"tasks": [as_dict(outcome) for outcome in outcomes], "report": report and str(report)}, indent=2
            )
        )
    elif report is not None:
        typer.echo(f"Report: {report}")
    return int(failed)


class _Terminated(KeyboardInterrupt):
    """The process was asked to end, as by `kill` or a batch system."""


def _terminate(number: int, frame: object) -> None:
    """Make a signal end the run as Ctrl-C does, with a message."""
    raise _Terminated


def print_outcomes(outcomes: Sequence[TaskOutcome]) -> None:
    """Print the table and its notes."""
    print_table(lambda hidden: results_table(outcomes, hidden), DROPPABLE)
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


def _report(folder: Path, tracker: Tracker | None) -> tuple[Path | None, str | None]:
    """Write the report and send the numbers to the tracker; return the report's path, and what failed."""
    from vila_eval.report.html import write_report

    report: Path | None = None
    try:
        report = write_report(folder)
        if tracker is not None:
            report_to(tracker, folder)
    except Exception as error:  # noqa: BLE001 - the results are complete, whatever fails here
        return report, f"{'The numbers were not sent' if report else 'The report was not written'}: " + (
            describe_exception(error)
        )
    return report, None
