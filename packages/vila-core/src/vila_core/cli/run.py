"""Running a command-line program: error messages and exit codes.

| exit code | when |
| --- | --- |
| 0 | success |
| 1 | a negative result, such as `vila doctor` finding that something is missing |
| 2 | a `VilaError`, or an unknown flag |
| 130 | interrupted with Ctrl-C |
"""

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, cast

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from vila_core.errors import VilaError


def run(app: typer.Typer, program: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a typer app as `program` and exit the process.

    A `VilaError` prints only its message, unless `--debug` is given.
    """
    run_command(lambda: cast("TyperCommand | TyperGroup", get_command(app)), program, arguments)


def run_command(
    build: Callable[[], TyperCommand | TyperGroup], program: str, arguments: Sequence[str] | None = None
) -> NoReturn:
    """Build a command, then run it as `run` does."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        build().main(args=[argument for argument in arguments if argument != "--debug"], prog_name=program)
    except VilaError as error:
        if debug:
            if error.details:
                typer.echo(error.details, err=True)
            raise
        typer.secho("Error: ", fg=typer.colors.RED, bold=True, nl=False, err=True)
        typer.echo(str(error), err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
