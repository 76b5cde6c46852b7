"""Help pages: plain names for option values, `-h`, and the options of shell completion."""

from pathlib import Path
from typing import Any, get_args, get_origin

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from vila_core.cli.options import OTHER

HELP_NAMES = ["--help", "-h"]
VALUES: dict[object, str] = {bool: "", int: "N", float: "X", str: "TEXT", Path: "PATH"}
"""Types -> how the help page names a value, where the option does not name it itself."""


def plain_help(command: Any) -> None:
    """Give `command` and its subcommands `-h`, and option values plain names in place of `<int range>` and `<bool>`."""
    command.context_settings.setdefault("help_option_names", HELP_NAMES)
    for parameter in command.params:
        if isinstance(parameter, TyperOption) and parameter.metavar is None:
            parameter.metavar = _value_name(parameter)
        elif isinstance(parameter, TyperArgument):
            vars(parameter)["display_type_rich"] = _no_type  # its name and help text say what it is
    with typer.Context(command, info_name=command.name, help_option_names=HELP_NAMES) as context:
        option = command.get_help_option(context)
    if option is not None:
        option.metavar = ""
        option.rich_help_panel = OTHER
    if isinstance(command, TyperGroup):
        for subcommand in command.commands.values():
            plain_help(subcommand)


def _no_type(ctx: typer.Context) -> str:
    return ""


def _value_name(option: TyperOption) -> str | None:
    """Return how to name the value of an option; None leaves it to typer, which lists the values of a choice."""
    descriptor = getattr(option, "type_descriptor", None)  # typer before 0.20 has none, and plain names
    if descriptor is None or descriptor.is_choice:
        return None
    annotation = descriptor.annotation
    if get_origin(annotation) is list:
        annotation = get_args(annotation)[0]
    return VALUES.get(annotation)


def add_completion(command: TyperCommand | TyperGroup) -> None:
    """Add `--install-completion` and `--show-completion`."""
    from typer.main import get_install_completion_arguments

    for option in get_install_completion_arguments():
        assert isinstance(option, TyperOption)
        option.rich_help_panel = OTHER
        option.metavar = ""
        command.params.append(option)
