"""`vila plugins`: the installed plugins, what each registers, and load errors."""

import json
from typing import Annotated, Any

import typer

from vila_core.cli.options import json_option
from vila_core.errors import printable
from vila_core.plugins.loader import load_plugins
from vila_core.plugins.registration import PluginInfo


def list_plugins(
    as_json: Annotated[bool, json_option("Print a JSON array, tracebacks included.")] = False,
) -> None:
    """List the plugins: distribution, version, hooks, and load errors.

    VILA_PLUGINS="" loads none, VILA_PLUGINS=a,b only those two; VILA_STRICT_PLUGINS=1 makes a load error fatal.
    """
    infos = load_plugins().infos
    if as_json:
        typer.echo(json.dumps([_as_dict(info) for info in infos], indent=2))
    else:
        _print_table(infos)


def _as_dict(info: PluginInfo) -> dict[str, Any]:
    return {
        "name": info.owner.plugin,
        "distribution": info.owner.distribution,
        "version": info.owner.version,
        "hooks": list(info.provides),
        "provides": info.provides,
        "error": info.error,
        "traceback": info.traceback,
    }


def _print_table(infos: tuple[PluginInfo, ...]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("plugin", "distribution", "registers", box=None, header_style="bold", pad_edge=False)
    for info in infos:
        if info.error is not None:
            registers = f"[red]failed to load:[/red] {escape(printable(info.error))}"
        else:
            kinds = [
                f"[dim]{hook.removeprefix('vila_').replace('_', ' ')}:[/dim] {escape(', '.join(names))}"
                for hook, names in info.provides.items()
            ]
            registers = "\n".join(kinds) or "[dim]nothing[/dim]"
        table.add_row(escape(info.owner.plugin), escape(f"{info.owner.distribution} {info.owner.version}"), registers)
    Console().print(table)
