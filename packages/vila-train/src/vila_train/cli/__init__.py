"""The program `vila-train`, also `vila train`. Subcommands are imported when they run."""

from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

import vila_train
from vila_core.cli.commands import LazyGroup
from vila_core.cli.options import Debug, version_option
from vila_core.plugins.hookspecs import Command
from vila_core.plugins.lazy import lazy_object

HELP = """
Train VILA-family models: fine-tune one on data of your own, or run the published stages from a recipe.

A run is a folder. If interrupted, the same command resumes it.

[bold]Examples[/bold]

vila-train sft --model Efficient-Large-Model/NVILA-Lite-2B --data my.jsonl --lora --out runs/mine

vila-train list [dim]# the recipes[/dim]

vila-train run nvila-lite-align --data cc3m_595k --out runs/align

vila-train run nvila-lite-sft --stage-from runs/pretrain --set optimizer.learning_rate=1e-5 --out runs/sft

vila-train run my.yaml --dry-run [dim]# settings, samples, memory and time, before anything is trained[/dim]

vila-train export runs/sft my-model --format nvila

vila-train world --sheet world.png [dim]# see what the embedded demo model learns from[/dim]
"""

COMMANDS = (
    Command("run", "Run a recipe or a YAML file.", lazy_object("vila_train.cli.running:run")),
    Command("sft", "Fine-tune a model on data of your own.", lazy_object("vila_train.cli.sft:sft")),
    Command("list", "List the recipes.", lazy_object("vila_train.cli.recipes:list_recipes")),
    Command("show", "Print the settings of a recipe as YAML.", lazy_object("vila_train.cli.recipes:show")),
    Command("data", "List, check and prepare training data.", lazy_object("vila_train.cli.data:app")),
    Command(
        "prune", "Choose the samples that teach the most, with two models.", lazy_object("vila_train.cli.prune:prune")
    ),
    Command(
        "export",
        "Write the model of a run, also of one that is not complete.",
        lazy_object("vila_train.cli.export:export"),
    ),
    Command("tiny", "Train vila-tiny, the embedded demo model, from scratch.", lazy_object("vila_train.cli.tiny:tiny")),
    Command("world", "Draw what vila-tiny learns from.", lazy_object("vila_train.cli.tiny:world")),
    Command("report", "Test a model on vila-tiny's world.", lazy_object("vila_train.cli.tiny:report")),
    Command("drawings", "Test how a model draws vila-tiny's world.", lazy_object("vila_train.cli.tiny:drawings")),
)
"""One line for each subcommand."""


class TrainGroup(LazyGroup):
    """The subcommands, each of which is imported when it runs."""

    lazy_commands = COMMANDS


app = typer.Typer(cls=TrainGroup, add_completion=False, no_args_is_help=True, rich_markup_mode="rich", help=HELP)


@app.callback()
def main_options(
    version: Annotated[bool, version_option(vila_train.__version__)] = False,
    debug: Debug = False,
) -> None:
    """Options of the program itself."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `vila-train`."""
    from vila_core.cli.run import run

    run(app, "vila-train", arguments)
