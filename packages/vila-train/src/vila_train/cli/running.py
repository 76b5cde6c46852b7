"""`vila-train run`: a recipe or a YAML file becomes a configuration, then there is one library call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vila_core.cli.options import Plugin, load_plugin_files
from vila_core.errors import ConfigError
from vila_train.cli.flags import AcceptChanges, DryRun, Out, Registries, Set, StageFrom

if TYPE_CHECKING:
    from vila_train.config import TrainConfig
    from vila_train.run_folder import RunFolder
    from vila_train.settings import RunConfig


def run(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe (see vila-train list), or a YAML file.")],
    out: Out = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Folder or hub id of the model to start from; for a stage that builds a new one, its language model.",
            rich_help_panel="Where it starts",
        ),
    ] = None,
    stage_from: StageFrom = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            "-d",
            metavar="MIXTURE",
            help="Datasets by name, such as a+b*3, or data files (repeatable).",
            rich_help_panel="Data",
        ),
    ] = None,
    registry: Registries = None,
    changes: Set = None,
    dry_run: DryRun = False,
    accept_changes: AcceptChanges = False,
    plugin: Plugin = None,
) -> None:
    """Run one stage of training. If interrupted, the same command resumes.

    On several GPUs: torchrun --nproc-per-node 8 -m vila_train run RECIPE …
    """
    from vila_train.config import TrainConfig
    from vila_train.settings import change
    from vila_train.stages import start_from

    load_plugin_files(plugin)
    config = read_target(recipe)
    if not isinstance(config, TrainConfig):
        refused = {"--model": model, "--stage-from": stage_from, "--data": data, "--registry": registry}
        if given := [name for name, value in refused.items() if value]:
            raise ConfigError(f"'{config.name}' trains all of its stages on data of its own: leave out {given[0]}.")
        _run_tiny(change(config, changes or ()), out, dry_run)
        return
    config = with_data(config, data or (), registry or ())
    config = change(config, changes or ())
    start(start_from(config, model, stage_from), out, dry_run, accept_changes)


def read_target(target: str) -> RunConfig:
    """Return the configuration of a recipe, or that in a YAML file. Raises `ConfigError`."""
    from vila_train.settings import build_recipe, read_config

    is_file = target.lower().endswith((".yaml", ".yml")) or os.path.isfile(target)
    return read_config(Path(target).expanduser()) if is_file else build_recipe(target)


def with_data(config: TrainConfig, mixtures: Sequence[str], registries: Sequence[Path]) -> TrainConfig:
    """Return `config` with other datasets, if any are named."""
    update: dict[str, object] = {}
    if mixtures:
        update["mixture"] = "+".join(mixtures)
    if registries:
        update["registries"] = tuple(path.expanduser().absolute() for path in registries)
    return config.model_copy(update={"data": config.data.model_copy(update=update)})


def start(config: TrainConfig, out: Path | None, dry_run: bool, accept_changes: bool) -> None:
    """Train in the folder `out`, or only say what would be done."""
    folder = (out or Path("runs") / config.name).expanduser()
    if dry_run:
        from vila_train.dry_run import show_dry_run

        if _is_first():
            show_dry_run(config, folder, accept_changes=accept_changes)
        return
    from vila_train.loop import train
    from vila_train.run_folder import RunFolder

    run = RunFolder(folder)
    try:
        was_complete = run.is_complete
        model = train(config, folder, accept_changes=accept_changes)
        done = f"{folder} holds a complete run, so nothing was done." if was_complete else f"Wrote {model}."
        _say(f"{done} Ask it: vila infer -m {model} --media PICTURE --text QUESTION")
    except KeyboardInterrupt:
        _say(f"Stopped. {_what_is_kept(run)}")
        raise typer.Exit(130) from None


def _what_is_kept(run: RunFolder) -> str:
    """Return how an interrupted run continues."""
    if run.is_complete:
        return f"The run is complete: {run.model} is written."
    if run.newest_step is None:
        return f"No step was saved: the same command starts the run in {run.path} again."
    return f"The same command resumes from step {run.newest_step} in {run.path}."


def _say(message: str) -> None:
    """Print on the first of several processes only."""
    if _is_first():
        typer.echo(message, err=True)


def _is_first() -> bool:
    """Return whether this is the first of the processes that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def _run_tiny(config: RunConfig, out: Path | None, dry_run: bool) -> None:
    from vila_train.cli.tiny import check_tiny, run_tiny
    from vila_train.recipes.tiny import TinyConfig
    from vila_train.settings import write_config

    assert isinstance(config, TinyConfig)
    folder = (out or Path("runs") / config.name).expanduser()
    if dry_run:
        check_tiny(config, folder)
        typer.echo(write_config(config), nl=False)
        return
    run_tiny(config, folder)
