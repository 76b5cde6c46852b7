"""`vila-eval report`: rewrite the report of a results folder."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(metavar="RESULTS", help="A model's results, such as results/vila-tiny.")],
) -> None:
    """Write report.html from the results in a folder, and print its path. This needs neither the model nor the data.

    [bold]Example:[/bold] vila-eval report results/vila-tiny
    """
    from vila_eval.report.html import write_report

    typer.echo(str(write_report(folder.expanduser())))
