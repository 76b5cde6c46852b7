"""Options that several programs share, as types for typer. Commands set the defaults: `revision: Revision = None`."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

MODEL, OUTPUT, OTHER = "Model", "Output", "Other"
"""Panels of a help page."""

Revision = Annotated[
    str | None,
    typer.Option("--revision", metavar="NAME", help="Branch, tag or commit of a hub id.", rich_help_panel=MODEL),
]
Token = Annotated[
    str | None,
    typer.Option("--token", metavar="TOKEN", help="Access token for private repositories.", rich_help_panel=MODEL),
]
Offline = Annotated[
    bool,
    typer.Option("--offline", metavar="", help="Only use what is in the hub's cache.", rich_help_panel=MODEL),
]
Device = Annotated[
    str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.", rich_help_panel=MODEL)
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype", metavar="NAME", help="auto, float32, bfloat16 or float16 (fp32, bf16, fp16).", rich_help_panel=MODEL
    ),
]
LoraPath = Annotated[
    str | None,
    typer.Option(
        "--lora-path",
        "-l",
        metavar="FOLDER",
        help="LoRA adapter (folder or hub id) to merge into the model.",
        rich_help_panel=MODEL,
    ),
]
Plugin = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE", help="Load the plugin in this Python file.", rich_help_panel=OTHER),
]
Debug = Annotated[
    bool, typer.Option("--debug", metavar="", help="Show the traceback of an error.", rich_help_panel=OTHER)
]
"""Only declares the flag for the help page: `run` reads it, wherever it stands on the command line."""
AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print a JSON object.", rich_help_panel=OUTPUT)]


def load_plugin_files(paths: Iterable[Path] | None) -> None:
    """Load the plugins in the files of `--plugin`. Raises `PluginError` as `load_plugin_file` does."""
    for path in paths or ():
        from vila_core.plugins.loader import load_plugin_file  # not above: it imports pydantic, which is slow

        load_plugin_file(path)


def name_embedded_model(model: str | None, advice: str = "-m") -> None:
    """Say that the embedded model is used if no model was named; `advice` is how to name one."""
    if model is None:
        typer.echo(
            f"Using the embedded demo model, which only knows drawn shapes. Name a model with {advice}.", err=True
        )


def json_option(help: str) -> Any:
    """Return a `--json` flag with its own help text, to annotate a bool."""
    return typer.Option("--json", metavar="", help=help, rich_help_panel=OUTPUT)


def version_option(version: str) -> Any:
    """Return a `--version` flag that prints `version` and exits, to annotate a bool."""
    return typer.Option(
        "--version",
        metavar="",
        callback=_print_version(version),
        is_eager=True,
        help="Print the version.",
        rich_help_panel=OTHER,
    )


def _print_version(version: str) -> Callable[[bool], None]:
    def print_version(shown: bool) -> None:
        if shown:
            typer.echo(version)
            raise typer.Exit

    return print_version
