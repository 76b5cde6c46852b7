"""`--dry-run`: what a run would do, before anything is trained."""

from pathlib import Path

import typer

from vila_train.config import TrainConfig
from vila_train.settings import write_config


def show_dry_run(config: TrainConfig, page: Path) -> None:
    """Print what a run would do."""
    typer.echo(write_config(config), nl=False)
