"""`vila-train sft`: fine-tune a model on data of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vila_core.cli.options import Plugin, load_plugin_files
from vila_core.errors import ConfigError
from vila_train.cli.flags import AcceptChanges, DryRun, Out, Registries, Set


def sft(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Folder or hub id; vila-tiny is the embedded demo model.",
            rich_help_panel="Where it starts",
        ),
    ],
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            "-d",
            metavar="FILE",
            help="Data file, whose format is detected, or a mixture of datasets by name (repeatable).",
            rich_help_panel="Data",
        ),
    ],
    out: Out = None,
    lora: Annotated[
        bool, typer.Option("--lora", metavar="", help="Train a LoRA adapter (adapter.method=lora).")
    ] = False,
    adapter: Annotated[
        str | None, typer.Option("--adapter", metavar="METHOD", help="lora, dora, qlora or norms: what is trained.")
    ] = None,
    epochs: Annotated[float, typer.Option("--epochs", metavar="X", help="Passes over the data.")] = 1.0,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", "--lr", metavar="X", help="Default: 2e-5, with adapters 1e-4.")
    ] = None,
    registry: Registries = None,
    changes: Set = None,
    dry_run: DryRun = False,
    accept_changes: AcceptChanges = False,
    plugin: Plugin = None,
) -> None:
    """Fine-tune a model on data of your own. If interrupted, the same command resumes.

    vila-train sft --model Efficient-Large-Model/NVILA-Lite-2B --data my.jsonl --lora --out runs/mine
    """
    from vila_train.cli.running import start, with_data
    from vila_train.recipes.sft import fine_tuning
    from vila_train.settings import change

    load_plugin_files(plugin)
    if lora and adapter not in (None, "lora"):
        raise ConfigError(f"Got both --lora and --adapter {adapter}. Give one.")
    config = fine_tuning(model, data[0], adapter="lora" if lora else adapter, learning_rate=learning_rate)
    config = change(config, [f"epochs={epochs}"], "--epochs: ") if epochs != 1.0 else config
    config = with_data(config, data, registry or ())
    start(change(config, changes or ()), Path(out) if out else None, dry_run, accept_changes)
