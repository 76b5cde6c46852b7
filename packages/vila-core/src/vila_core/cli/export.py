"""`vila export`: write a folder that another engine serves, with a progress bar."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vila_core.cli.convert import CountedWeights, MaxShard, read_size
from vila_core.cli.options import MODEL, LoraPath, Offline, Revision, name_embedded_model
from vila_core.cli.progress import BYTES, open_progress


def export_checkpoint(
    engine: Annotated[str, typer.Argument(metavar="ENGINE", help="sglang or tensorrt-llm.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    model_path: Annotated[
        str | None,
        typer.Option(
            "--model-path",
            "-m",
            metavar="MODEL",
            help="Folder or hub id. Default: vila-tiny, the demo model.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    lora: LoraPath = None,
    revision: Revision = None,
    offline: Offline = False,
    max_shard: MaxShard = None,
) -> None:
    """Write a folder that SGLang or TensorRT-LLM serves. A model that they would compute differently is refused.

    [bold]Example:[/bold] vila export sglang nvila-lite -m Efficient-Large-Model/NVILA-Lite-2B
    """
    from vila_core.checkpoint.embedded import EMBEDDED_MODEL
    from vila_core.checkpoint.export import SERVE, export, require_engine
    from vila_core.checkpoint.lora import open_checkpoint

    require_engine(engine)
    limit = None if max_shard is None else read_size(max_shard)
    name_embedded_model(model_path)
    checkpoint = open_checkpoint(model_path or EMBEDDED_MODEL, revision=revision, offline=offline)
    with open_progress(BYTES, lines=False) as progress:
        progress.start("Exporting", sum(entry.nbytes for entry in checkpoint.weights.entries.values()))
        counted = replace(checkpoint, weights=CountedWeights(checkpoint.weights, progress.advance))
        written = export(engine, counted, out, lora=lora, offline=offline, max_shard_bytes=limit)
    typer.echo(f"Wrote {written}. To serve it: {SERVE[engine].format(folder=written)}")
