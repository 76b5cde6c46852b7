"""Subcommands that are imported only when they run, so that `--help` is fast."""

from collections.abc import Sequence
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from vila_core.cli.help_pages import plain_help
from vila_core.plugins.hookspecs import Command


class LazyCommand(TyperCommand):
    """A subcommand of which only the name and the help text are known until it runs."""

    def __init__(self, command: Command):
        super().__init__(command.name, help=command.help, short_help=command.help, callback=None)
        self._command = command

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        loaded = self._command.load()
        if not isinstance(loaded, typer.Typer):
            app = typer.Typer(add_completion=False, rich_markup_mode="rich")
            app.command(self._command.name)(loaded)
            loaded = app
        command = get_command(loaded)
        plain_help(command)
        return command.make_context(info_name, args, parent, **extra)


class LazyGroup(TyperGroup):
    """A program with subcommands: subclass it, set `lazy_commands`, and pass the subclass as `typer.Typer(cls=...)`."""

    lazy_commands: ClassVar[Sequence[Command]] = ()

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        for command in self.lazy_commands:
            self.add_command(LazyCommand(command))
