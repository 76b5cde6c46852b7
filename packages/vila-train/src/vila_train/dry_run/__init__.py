"""`--dry-run`: what a run would do, before anything is trained."""

from pathlib import Path

import typer

from vila_core.new_file import make_folder, write_file
from vila_train.config import TrainConfig


def show_dry_run(config: TrainConfig, folder: Path, *, accept_changes: bool = False) -> None:
    """Print the settings, the data, and what a run will need; write its first samples to FOLDER-dry-run.html.

    Args:
        config: of the run.
        folder: of the run. Nothing is written in it.
        accept_changes: as for `train`.

    Raises:
        VilaError: the run would fail before its first step, no sample can be used, or the page cannot be written.
    """
    from vila_train.dry_run.measuring import measure
    from vila_train.dry_run.page import draw_page
    from vila_train.dry_run.report import describe
    from vila_train.run_folder import RunFolder
    from vila_train.settings import write_config

    settings = write_config(config)
    run = RunFolder(folder)
    measured = measure(config, run, accept_changes=accept_changes)
    report = describe(measured)
    typer.echo(settings)
    for title, facts in report.items():
        typer.echo(f"{title}")
        width = max(map(len, facts))
        for name, value in facts.items():
            typer.echo(f"  {name:<{width}}  {value}")
        typer.echo()
    named = folder if folder.name not in ("", "..") else folder.resolve()
    page = named.parent / f"{named.name}-dry-run.html"
    make_folder(page.parent)
    write_file(page, draw_page(config.name, settings, report, measured))
    typer.echo(f"Nothing was trained. The first samples, with the tokens that are learned, are in {page}.")
    if run.is_complete:
        typer.echo(f"{folder} holds a complete run, which the same command would leave as it is.")
