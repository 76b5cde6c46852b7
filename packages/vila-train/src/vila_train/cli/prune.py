"""`vila-train prune`: choose the samples that teach the most."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vila_core.cli.options import Device, Plugin, load_plugin_files
from vila_train.cli.flags import Registries


def prune(
    small: Annotated[str, typer.Option("--small", metavar="MODEL", help="Folder or hub id of the small model.")],
    large: Annotated[str, typer.Option("--large", metavar="MODEL", help="Folder or hub id of the large model.")],
    data: Annotated[list[str], typer.Option("--data", "-d", metavar="MIXTURE", help="Datasets or files (repeatable).")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for scores and subset files.")],
    keep: Annotated[float, typer.Option("--keep", metavar="SHARE", help="Share of the samples to keep.")] = 0.5,
    drop_hardest: Annotated[
        float,
        typer.Option("--drop-hardest", metavar="SHARE", help="Share to drop for the highest scores (wrong labels)."),
    ] = 0.0,
    min_score: Annotated[
        float | None,
        typer.Option("--min-score", metavar="X", help="Drop lower scores, even if fewer samples are left."),
    ] = None,
    per_token: Annotated[
        bool, typer.Option("--per-token", metavar="", help="Divide each score by the tokens of the answers.")
    ] = False,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=1, metavar="N", help="Leave longer samples out (in tokens).")
    ] = None,
    registry: Registries = None,
    device: Device = "auto",
    plugin: Plugin = None,
) -> None:
    """Drop samples that are too easy or distracting (DeltaLoss). If interrupted, the same command resumes.

    vila-train prune --small Efficient-Large-Model/NVILA-Lite-2B --large Efficient-Large-Model/NVILA-8B
    --data my.jsonl --out pruned

    The score of a sample is log(p_large / p_small) of its answers.
    The half of each dataset with the highest scores is kept, as in NVILA.
    Train on it with --data my.jsonl@pruned/my.txt.
    """
    from vila_core.cli.progress import open_progress
    from vila_train.pruning.prune import PruneOptions
    from vila_train.pruning.prune import prune as run_prune

    load_plugin_files(plugin)
    registries = tuple(str(path.expanduser().absolute()) for path in registry or ())
    options = PruneOptions(small, large, "+".join(data), registries, max_length, per_token)
    try:
        with open_progress("samples") as progress:
            pruned = run_prune(
                options,
                out.expanduser(),
                keep=keep,
                drop_hardest=drop_hardest,
                min_score=min_score,
                device=device,
                progress=progress,
            )
    except KeyboardInterrupt:
        typer.echo(f"Stopped. The same command resumes with the scores in {out}.", err=True)
        raise typer.Exit(130) from None
    for one in pruned:
        chosen = one.selection
        failed = "".join(f", {count:,} {reason}" for reason, count in one.failed.items())
        typer.echo(
            f"{one.dataset}: {len(chosen.kept):,} of {chosen.scored:,} kept; dropped {chosen.easy:,} easy, "
            f"{chosen.distracting:,} distracting, {chosen.hardest:,} hardest{failed}."
        )
        if chosen.kept_distracting:
            typer.echo(
                f"  {chosen.kept_distracting:,} of those kept have a score below 0: the small model is better there. "
                "--min-score 0 drops them."
            )
    typer.echo(f"Train on: --data '{'+'.join(f'{one.dataset}@{one.path}' for one in pruned)}'")
