"""`vila-quant`: one program; a sub-command is imported when it runs."""

from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

import vila_quant
from vila_core.cli.commands import LazyCommand
from vila_core.cli.options import Debug
from vila_core.cli.run import run
from vila_core.plugins.hookspecs import Command

HELP = """
Quantize a VILA model: four-bit weights for the language model, eight bits for its head and its vision tower.

[bold]Examples[/bold]

vila-quant awq my-fine-tune my-fine-tune-awq  [dim]one command; built-in calibration, no network[/dim]

vila-quant awq NVILA-8B nvila-8b-awq --calibration photos/ --lm-head int8  [dim]calibrated on a folder of pictures with prompts[/dim]

vila-quant check my-fine-tune-awq --against my-fine-tune  [dim]what was lost[/dim]

vila-quant kernels my-fine-tune-awq  [dim]what multiplies each layer on this machine, and why[/dim]
"""


def _command(name: str, help_: str, module: str, function: str) -> Command:
    def load() -> Any:
        return vars(import_module(f"vila_quant.cli.{module}"))[function]

    return Command(name, help_, load)


COMMANDS = (
    _command("awq", "Quantize a model to four bits.", "awq", "quantize"),
    _command("check", "Compare a quantized model with the one it was made from.", "check", "check_model"),
    _command("kernels", "Say which kernel multiplies each layer on this machine, and why.", "kernels", "list_kernels"),
)


class QuantizationGroup(TyperGroup):
    """The program's sub-commands."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        for command in COMMANDS:
            self.add_command(LazyCommand(command))


def _show_version(shown: bool) -> None:
    if shown:
        typer.echo(vila_quant.__version__)
        raise typer.Exit


app = typer.Typer(cls=QuantizationGroup, add_completion=False, no_args_is_help=True, rich_markup_mode="rich", help=HELP)


@app.callback()
def _root(  # pyright: ignore[reportUnusedFunction]
    version: Annotated[
        bool, typer.Option("--version", metavar="", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Debug = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point of `vila-quant`: run `arguments` (else the process's own) and exit."""
    run(app, "vila-quant", arguments)
