"""`vila`: a program whose subcommands come from plugins, core's own included."""

from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command

import vila_core
from vila_core.cli.commands import LazyCommand
from vila_core.cli.options import Debug, version_option
from vila_core.cli.run import run_command
from vila_core.plugins.loader import load_plugins

HELP = """
Manage VILA checkpoints and this installation. To ask a model a question, use [bold]vila-infer[/bold].

[bold]Examples[/bold]

vila doctor  [dim]is everything installed?[/dim]

vila info Efficient-Large-Model/NVILA-Lite-2B  [dim]parts, parameters, memory, license[/dim]

vila convert my-run nvila-model --format nvila  [dim]for SGLang[/dim]

vila plugins --json  [dim]what is installed, and what failed to load[/dim]
"""


def _root(
    version: Annotated[bool, version_option(vila_core.__version__)] = False,
    debug: Debug = False,
) -> None:
    pass


def build_group() -> TyperGroup:
    """Return the `vila` command with every registered subcommand. Raises `PluginError` as `load_plugins` does."""
    app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich", help=HELP)
    app.callback()(_root)
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    for command in load_plugins().commands:
        group.add_command(LazyCommand(command))
    return group


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `vila` with `arguments` (default: those of the process) and exit."""
    run_command(build_group, "vila", arguments)
