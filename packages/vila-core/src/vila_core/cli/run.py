"""Running a command-line program: error messages and exit codes.

| exit code | when |
| --- | --- |
| 0 | success |
| 1 | a negative result, such as `vila doctor` finding that something is missing |
| 1 | standard output is a pipe that nobody reads any more |
| 2 | a `VilaError`, an unknown flag, or a path that the system refuses |
| 130 | interrupted with Ctrl-C (see `entry_point`) |
"""

import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TextIO, cast

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from vila_core.cli.help_pages import add_completion, plain_help
from vila_core.cli.terminal import visible
from vila_core.errors import VilaError, VilaWarning, shown


def run(app: typer.Typer, program: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a typer app as `program` and exit the process.

    A `VilaError` prints only its message, unless `--debug` is given.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C, and the program does not say itself what it keeps.
    """
    run_command(lambda: cast("TyperCommand | TyperGroup", get_command(app)), program, arguments)


def run_command(
    build: Callable[[], TyperCommand | TyperGroup], program: str, arguments: Sequence[str] | None = None
) -> NoReturn:
    """Build a command, then run it as `run` does."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    _escape_what_cannot_be_encoded()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            command = build()
            plain_help(command)
            add_completion(command)
            command.main(args=[argument for argument in arguments if argument != "--debug"], prog_name=program)
    except VilaError as error:
        if debug:
            if error.details:
                typer.echo(error.details, err=True)
            raise
        typer.secho("Error: ", fg=typer.colors.RED, bold=True, nl=False, err=True)
        typer.echo(visible(str(error)), err=True)
        sys.exit(2)
    except (RuntimeError, OSError) as error:
        reason = _path_problem(error)
        if debug or reason is None:
            raise
        typer.secho("Error: ", fg=typer.colors.RED, bold=True, nl=False, err=True)
        typer.echo(visible(reason), err=True)
        sys.exit(2)
    except SystemExit as error:
        if _is_interrupt(error):
            raise KeyboardInterrupt from None
        raise
    sys.exit(0)


def _escape_what_cannot_be_encoded() -> None:
    """Print file names that are not valid Unicode, and text that the terminal's encoding lacks, with escapes."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _path_problem(error: RuntimeError | OSError) -> str | None:
    """Return what is wrong with a path of the user, None if the error is about something else."""
    if isinstance(error, OSError):
        return None if error.filename is None else f"{error.strerror}: {shown(os.fsdecode(error.filename))}."
    if "home directory" in str(error):  # pathlib's words for "~name" without such a user
        return "A path begins with ~ and the name of a user that does not exist. Write ./~… for such a file."
    if "Symlink loop" in str(error):
        return f"{shown(str(error), 500)}. Remove the link that leads to itself."
    return None


def _is_interrupt(error: SystemExit) -> bool:
    """Return whether typer turned a Ctrl-C into this exit. A program that says what it keeps exits by itself."""
    ended = error.__context__
    return error.code == 130 and ended is not None and isinstance(ended.__cause__, KeyboardInterrupt)


_show_warning = warnings.showwarning


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print our own warnings as one line without the place in the code, and others as Python does.

    Pillow warns of each strange tag of a picture, which a damaged file has thousands of.
    """
    if "PIL" in Path(filename).parts:
        return
    ours = any(part.startswith("vila_") for part in Path(filename).parts) and category is UserWarning
    if ours or issubclass(category, VilaWarning):
        typer.secho("Warning: ", fg=typer.colors.YELLOW, bold=True, nl=False, err=True)
        typer.echo(visible(str(message)), err=True)
    else:
        _show_warning(message, category, filename, lineno, file, line)
