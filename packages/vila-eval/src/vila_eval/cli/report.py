"""`vila-eval report`: write the report of a results folder anew."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(metavar="RESULTS", help="A model's results, such as results/vila-tiny.")],
) -> None:
    """Write report.html from the results in a folder, and print its path. Neither the model nor the data is needed.

    [bold]Example:[/bold] vila-eval report results/vila-tiny
    """
    from vila_eval.report.html import write_report

    typer.echo(str(write_report(folder.expanduser())))
