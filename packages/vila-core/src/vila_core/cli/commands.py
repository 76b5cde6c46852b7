"""Subcommands that are imported only when they run, so that `--help` is fast."""

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from vila_core.cli.help_pages import plain_help
from vila_core.errors import PluginError, shown
from vila_core.plugins.guards import call_plugin
from vila_core.plugins.hookspecs import Command


class LazyCommand(TyperCommand):
    """A subcommand of which only the name and the help text are known until it runs."""

    def __init__(self, command: Command):
        text = as_markup(command.help)
        super().__init__(command.name, help=text, short_help=text, callback=None)
        self._command = command

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        command = call_plugin(f"The command '{self._command.name}'", self._load)
        plain_help(command)
        return command.make_context(info_name, args, parent, **extra)

    def _load(self) -> TyperCommand | TyperGroup:
        loaded: object = self._command.load()
        if not isinstance(loaded, typer.Typer):
            if not callable(loaded):
                raise PluginError(f"load returned {shown(loaded)}; expected a typer app or a function")
            app = typer.Typer(add_completion=False, rich_markup_mode="rich")
            app.command(self._command.name)(loaded)
            loaded = app
        return cast("TyperCommand | TyperGroup", get_command(loaded))


def as_markup(text: str) -> str:
    """Return help text as rich reads it; what is no markup is shown as it is."""
    if "[" not in text:
        return text
    from rich.errors import MarkupError
    from rich.markup import escape, render

    try:
        render(text)
    except MarkupError:
        return escape(text)
    return text


class LazyGroup(TyperGroup):
    """A program with subcommands: subclass it, set `lazy_commands`, and pass the subclass as `typer.Typer(cls=...)`."""

    lazy_commands: ClassVar[Sequence[Command]] = ()

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        for command in self.lazy_commands:
            self.add_command(LazyCommand(command))
