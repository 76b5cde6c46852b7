"""`vila`: a program whose subcommands come from plugins, core's own included."""

from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command

import vila_core
from vila_core.cli.commands import LazyCommand
from vila_core.cli.options import Debug, version_option
from vila_core.cli.replaced import INSTEAD
from vila_core.cli.run import run_command
from vila_core.errors import ConfigError
from vila_core.plugins.loader import load_commands, load_plugins
from vila_core.plugins.registration import CORE

HELP = """
Ask and manage VILA models.

[bold]Examples[/bold]

vila doctor [dim]# is everything installed?[/dim]

vila infer examples/media/scene.png "What is in the picture?"

vila chat -m Efficient-Large-Model/NVILA-8B [dim]# a conversation[/dim]

vila info Efficient-Large-Model/NVILA-Lite-2B [dim]# parts, memory[/dim]

vila convert my-run nvila-model --format nvila [dim]# another format[/dim]

vila export sglang nvila-model -m my-run [dim]# for SGLang or TensorRT-LLM[/dim]

vila plugins --json [dim]# what is installed[/dim]
"""


def _root(
    version: Annotated[bool, version_option(vila_core.__version__)] = False,
    debug: Debug = False,
) -> None:
    pass


class PluginCommand(LazyCommand):
    """A subcommand of a plugin. It runs only if the whole plugin loads."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        if not {"--help", "-h"} & set(args):
            load_plugins().commands.get(self._command.name)
        return super().make_context(info_name, args, parent, **extra)


class VilaGroup(TyperGroup):
    """The group of subcommands; it names the right one for those of other programs."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the subcommand. Raises `ConfigError` for one that has another name here."""
        name = args[0]
        if name not in self.commands and name in INSTEAD:
            raise ConfigError(f"There is no command 'vila {name}'. {INSTEAD[name]}")
        return super().resolve_command(ctx, args)


def build_group() -> TyperGroup:
    """Return the `vila` command with every registered subcommand. Raises `PluginError` as `load_plugins` does."""
    app = typer.Typer(cls=VilaGroup, add_completion=False, no_args_is_help=True, rich_markup_mode="rich", help=HELP)
    app.callback()(_root)
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    for entry in load_commands().items():
        group.add_command(LazyCommand(entry.item) if entry.owner.plugin == CORE else PluginCommand(entry.item))
    return group


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `vila` with `arguments` (default: those of the process) and exit."""
    run_command(build_group, "vila", arguments)
