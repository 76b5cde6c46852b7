"""Options that the commands which train share, as on the help page."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

_start = partial(typer.Option, rich_help_panel="Where it starts")
_data = partial(typer.Option, rich_help_panel="Data")
_run = partial(typer.Option, rich_help_panel="Run")

Out = Annotated[
    Path | None, _run("--out", "-o", metavar="DIR", help="Folder of the run (default: runs/NAME of the stage).")
]
Set = Annotated[
    list[str] | None,
    _run("--set", "-s", metavar="KEY=VALUE", help="Change a setting, such as data.max_length=8192 (repeatable)."),
]
DryRun = Annotated[
    bool,
    _run(
        "--dry-run",
        metavar="",
        help="Train nothing: show the settings, the samples with the tokens that are learned, memory and time.",
    ),
]
StageFrom = Annotated[
    Path | None, _start("--stage-from", metavar="RUN", help="Start from the model of this earlier run.")
]
Registries = Annotated[
    list[Path] | None,
    _data("--registry", metavar="FILE", help="YAML file that defines more datasets (repeatable)."),
]
AcceptChanges = Annotated[
    bool,
    _run("--accept-changes", metavar="", help="Resume a run that was started with other settings, data or weights."),
]
