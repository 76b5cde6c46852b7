"""mkdocs hook: generates the page `reference/cli.md` from the programs themselves, so that it is never out of date."""

import re
from collections.abc import Iterator
from importlib import import_module
from itertools import groupby
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.core import TyperGroup
from typer.main import get_command

from vila_core.cli.main import build_group

PROGRAMS = {
    "vila-infer": "vila_core.cli.infer:app",
    "vila": None,
    "vila-quant": "vila_quant.cli.main:app",
    "vila-train": "vila_train.cli:app",
    "vila-eval": "vila_eval.cli.main:app",
}
"""Where each program's app is. `vila` is built from plugins; its subcommands that are programs of their own are left
out."""
INTRODUCTION = """# Command line

Generated from the programs: `--help` prints the same. Every command takes `--debug`, which shows the traceback of an
error.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated page."""
    files.append(File.generated(config, "reference/cli.md", content="\n".join([INTRODUCTION, *_programs()])))
    return files


def _programs() -> Iterator[str]:
    for name, place in PROGRAMS.items():
        if place is None:
            command: Any = build_group()
        else:
            module, attribute = place.split(":")
            command = get_command(getattr(import_module(module), attribute))
        with command.make_context(name, [], resilient_parsing=True) as context:
            yield from _command(context, 2)


def _command(context: Any, level: int) -> Iterator[str]:
    """Yield the Markdown of a command and, below it, of its subcommands."""
    command = context.command
    yield f"{'#' * level} `{context.command_path}`\n"
    yield _description(command.help or "")
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{context.command_path} {usage}\n```\n"
    yield from _parameters(context)
    if isinstance(command, TyperGroup):
        for name in command.list_commands(context):
            if f"{context.command_path}-{name}" in PROGRAMS:
                yield f"{'#' * (level + 1)} `{context.command_path} {name}`\n"
                yield f"The same as [`vila-{name}`](#vila-{name}).\n"
                continue
            subcommand = command.get_command(context, name)
            if subcommand is None or subcommand.hidden:
                continue
            with subcommand.make_context(name, [], parent=context, resilient_parsing=True) as below:
                yield from _command(below, level + 1)


def _parameters(context: Any) -> Iterator[str]:
    """Yield one table per panel of the help page."""
    parameters = [
        parameter for parameter in context.command.get_params(context) if not getattr(parameter, "hidden", False)
    ]
    rows = [(_panel(parameter), record) for parameter in parameters if (record := parameter.get_help_record(context))]
    panels = list(dict.fromkeys(panel for panel, _ in rows))
    for panel, group in groupby(sorted(rows, key=lambda row: panels.index(row[0])), key=lambda row: row[0]):
        yield f"| {panel} | |\n| --- | --- |"
        for _, (name, help) in group:
            yield f"| `{_cell(name)}` | {_cell(_plain(help)).replace('<', '&lt;')} |"
        yield ""


def _panel(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return "Arguments"
    return getattr(parameter, "rich_help_panel", None) or "Options"


def _description(help: str) -> str:
    """Turn a help text with Rich's markup into Markdown; what follows the title "Examples" is a block of commands."""
    text, _, examples = help.replace("\f", "").partition("[bold]Examples[/bold]")
    parts = [_bold(text.strip())]
    if lines := [_plain(line.strip()) for line in examples.splitlines() if line.strip()]:
        parts.append("```text\n" + "\n".join(lines) + "\n```")
    return "\n\n".join(parts) + "\n"


def _bold(text: str) -> str:
    return _plain(re.sub(r"\[bold\](.*?)\[/bold\]", r"**\1**", text))


def _plain(text: str) -> str:
    return re.sub(r"\[/?(?:bold|dim|italic|cyan|green|red|yellow)\]", "", text)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
