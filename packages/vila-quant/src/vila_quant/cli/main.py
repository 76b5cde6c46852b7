"""The program `vila-quant`. A subcommand is imported when it runs."""

from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

import vila_quant
from vila_core.cli.commands import LazyGroup
from vila_core.cli.options import Debug, version_option
from vila_core.cli.run import run
from vila_core.plugins.hookspecs import Command
from vila_core.plugins.lazy import lazy_object

HELP = """
Quantize a VILA model: its language model to 4 bits, and optionally its head and vision tower to 8 bits.

[bold]Examples[/bold]

vila-quant awq my-fine-tune my-fine-tune-awq [dim]# built-in calibration, no network[/dim]

vila-quant awq Efficient-Large-Model/NVILA-8B nvila-8b-awq --calibration photos/

vila-quant check my-fine-tune-awq --against my-fine-tune [dim]# what quantization lost[/dim]

vila-quant kernels my-fine-tune-awq [dim]# which kernel runs each layer, and why[/dim]

vila-quant tune my-fine-tune-awq [dim]# faster four-bit kernels on a GPU without a table of its own[/dim]
"""


COMMANDS = (
    Command("awq", "Quantize a model to four bits.", lazy_object("vila_quant.cli.awq:quantize")),
    Command(
        "check",
        "Compare a quantized model with its original.",
        lazy_object("vila_quant.cli.check:check_model"),
    ),
    Command(
        "kernels",
        "Show which kernel runs each layer on this machine, and why.",
        lazy_object("vila_quant.cli.kernels:list_kernels"),
    ),
    Command(
        "tune",
        "Measure the fastest settings of the four-bit kernels on this GPU.",
        lazy_object("vila_quant.cli.tune:tune_kernels"),
    ),
)


class QuantizationGroup(LazyGroup):
    """The subcommands of `vila-quant`."""

    lazy_commands = COMMANDS


app = typer.Typer(cls=QuantizationGroup, add_completion=False, no_args_is_help=True, rich_markup_mode="rich", help=HELP)


@app.callback()
def _root(  # pyright: ignore[reportUnusedFunction]
    version: Annotated[bool, version_option(vila_quant.__version__)] = False,
    debug: Debug = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point of `vila-quant`: run `arguments` (by default the process's) and exit."""
    run(app, "vila-quant", arguments)
