"""`vila`: one program whose sub-commands come from plugins, core's own included. A sub-command is imported when it runs."""

from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

import vila_core
from vila_core.cli.run import Debug, run_command
from vila_core.plugins.hookspecs import Command
from vila_core.plugins.loader import load_plugins

HELP = """
Look after VILA checkpoints and this installation. To ask a model something, use [bold]vila-infer[/bold].

[bold]Examples[/bold]

vila doctor  [dim]is everything here?[/dim]

vila info Efficient-Large-Model/NVILA-Lite-2B  [dim]parts, parameters, memory, license[/dim]

vila convert my-run nvila-model --format nvila  [dim]for SGLang[/dim]

vila plugins --json  [dim]what is installed, and what did not load[/dim]
"""


class LazyCommand(TyperCommand):
    """A sub-command known by name and help alone; the first use of it imports it."""

    def __init__(self, command: Command):
        super().__init__(command.name, help=command.help, short_help=command.help, callback=None)
        self._command = command

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        loaded = self._command.load()
        if not isinstance(loaded, typer.Typer):
            app = typer.Typer(add_completion=False, rich_markup_mode="rich")
            app.command(self._command.name)(loaded)
            loaded = app
        return get_command(loaded).make_context(info_name, args, parent, **extra)


def _show_version(shown: bool) -> None:
    if shown:
        typer.echo(vila_core.__version__)
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", metavar="", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Debug = False,
) -> None:
    pass


def build_group() -> TyperGroup:
    """Return the `vila` command with every registered sub-command. Raises `PluginError` as `load_plugins` does."""
    app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich", help=HELP)
    app.callback()(_root)
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    for command in load_plugins().commands:
        group.add_command(LazyCommand(command))
    return group


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point of `vila`: run `arguments` (else the process's own) and exit."""
    run_command(build_group, "vila", arguments)
