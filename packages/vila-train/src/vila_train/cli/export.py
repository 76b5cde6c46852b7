"""`vila-train export`: the model of a run, complete or not."""

from pathlib import Path
from typing import Annotated

import typer

from vila_core.cli.options import Plugin, load_plugin_files


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Argument(help="New folder for the model.")],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="vila, nvila (which SGLang serves), or vila-u (default: vila-u for a model that draws, else vila).",
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="NAME", help="bfloat16, float16 or float32 (default: bfloat16).")
    ] = None,
    adapter: Annotated[
        bool,
        typer.Option(
            "--adapter", metavar="", help="Only what was trained, in peft's format (default: the merged model)."
        ),
    ] = False,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes", metavar="", help="Export even if the model that training started from has changed."
        ),
    ] = False,
    plugin: Plugin = None,
) -> None:
    """Write the newest checkpoint of a run as a model that `vila`, `vila-quant` and `vila-serve` read.

    Adapters are merged into the weights, or with --adapter written by themselves.
    """
    from vila_train.loop import export as export_run

    load_plugin_files(plugin)
    export_run(
        run.expanduser(),
        out.expanduser(),
        format=format,
        dtype=dtype,
        adapter_only=adapter,
        accept_changes=accept_changes,
    )
    typer.echo(f"Wrote {out}.")
