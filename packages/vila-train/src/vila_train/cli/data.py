"""`vila-train data`: which datasets there are, whether their samples can be used, and preparing public ones."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vila_core.cli.options import AsJson, Plugin, load_plugin_files
from vila_core.errors import warn
from vila_train.cli.flags import Registries

if TYPE_CHECKING:
    from vila_train.data.checking import Findings
    from vila_train.data.registry import Registry

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Training data: list datasets, check their samples, and prepare public ones.",
)

Samples = Annotated[
    int, typer.Option("--samples", metavar="N", min=0, help="Samples to check of each dataset, evenly spread; 0: all.")
]
Decode = Annotated[bool, typer.Option("--decode", metavar="", help="Also decode images, and a frame of each video.")]


@app.command("list")
def list_datasets(registry: Registries = None, plugin: Plugin = None, as_json: AsJson = False) -> None:
    """List the names that a mixture can have: those of registries, of plugins, and public data sets.

    vila-train data list --registry my.yaml
    """
    from vila_train.data.public_sets import public_sets
    from vila_train.data.registry import open_registry

    load_plugin_files(plugin)
    opened = open_registry(registry or ())
    rows = [(name, _kind(name, opened)) for name in opened.names()]
    known = {name for name, _ in rows}
    rows += [(name, f"public: {one.summary}") for name, one in public_sets().items() if name not in known]
    if as_json:
        typer.echo(json.dumps([{"name": name, "description": text} for name, text in rows], indent=2))
        return
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        typer.echo(f"{name:<{width}}  {text}")
    typer.echo("\nPublic data sets need a copy: vila-train data prepare NAME FOLDER", err=True)


def _kind(name: str, registry: Registry) -> str:
    if name in registry.datasets:
        return "dataset of a registry"
    if name in registry.mixtures:
        return f"mixture of a registry: {' + '.join(registry.mixtures[name])}"
    return "dataset of a plugin"


@app.command()
def check(
    mixture: Annotated[str, typer.Argument(help="Datasets by name or data files, such as a+b*3.")],
    registry: Registries = None,
    samples: Samples = 10_000,
    decode: Decode = False,
    plugin: Plugin = None,
    as_json: AsJson = False,
) -> None:
    """Count the samples of a mixture, and read some of each dataset. The first bad ones are named.

    Exits with code 1 if no checked sample of a dataset can be used.

    vila-train data check my.jsonl --decode
    """
    from vila_core.cli.progress import open_progress
    from vila_train.data.checking import check_source
    from vila_train.data.mixture import mix
    from vila_train.data.registry import open_registry
    from vila_train.data.sources import whole_source

    load_plugin_files(plugin)
    datasets = open_registry(registry or ())
    opened = mix(datasets, mixture, seed=0)
    stated = {name: named.entry.samples for name, named in datasets.datasets.items()}
    checked: list[tuple[str, float, int, Findings]] = []
    with open_progress("samples") as progress:
        for part in opened.parts:
            limit = samples or None
            progress.start(part.source.name, min(limit or part.size, part.size))
            findings = check_source(part.source, limit, decode, progress.advance)
            checked.append((part.source.name, part.weight, part.samples, findings))
    for part in opened.parts:
        whole, expected = len(whole_source(part.source)), stated.get(part.source.name)
        if expected not in (None, whole):
            warn(f"The dataset '{part.source.name}' has {whole:,} samples, but its registry says {expected:,}.")
    if as_json:
        typer.echo(json.dumps([_as_record(*row) for row in checked], indent=2))
    else:
        for name, weight, per_epoch, findings in checked:
            typer.echo(f"{name}: {findings.size:,} samples; {per_epoch:,} per epoch (weight {weight:g})")
            typer.echo("\n".join(_report(findings)))
        typer.echo(f"The mixture has {len(opened):,} samples per epoch.")
    if any(not findings.usable for *_, findings in checked):
        raise typer.Exit(1)


def _as_record(name: str, weight: float, per_epoch: int, findings: Findings) -> dict[str, object]:
    return {
        "name": name,
        "samples": findings.size,
        "weight": weight,
        "samples_per_epoch": per_epoch,
        "checked": findings.checked,
        "usable": findings.usable,
        "bad": dict(findings.bad),
        "first_bad": list(findings.first),
        "images": findings.images,
        "videos": findings.videos,
        "characters": findings.characters,
    }


def _report(findings: Findings) -> Sequence[str]:
    usable = max(findings.usable, 1)
    lines = [
        f"  {findings.checked:,} checked, {findings.usable:,} can be used; on average {findings.images / usable:.1f} "
        f"images, {findings.videos / usable:.1f} videos and {findings.characters / usable:,.0f} characters"
    ]
    lines += [f"  {count:,} × {reason}" for reason, count in findings.bad.items()]
    return [*lines, *(f"    {message}" for message in findings.first)]


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="Name of a public data set (see vila-train data list).")],
    folder: Annotated[Path, typer.Argument(help="Folder that it was downloaded to.")],
    samples: Samples = 10_000,
    decode: Decode = False,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Processes that index files (default: one per CPU core).")
    ] = None,
) -> None:
    """Find a downloaded public data set, check it, and write a registry into its folder. Nothing is downloaded.

    vila-train data prepare cc3m_595k /data/LLaVA-CC3M-Pretrain-595K
    """
    from vila_core.cli.progress import open_progress
    from vila_train.data.preparing import prepare_public_set

    typer.echo(f"Looking for {name} in {folder}, and indexing its files …", err=True)
    with open_progress("samples") as progress:
        prepared = prepare_public_set(
            name,
            folder.expanduser(),
            samples or None,
            decode,
            workers or os.cpu_count() or 1,
            lambda total: progress.start(name, total),
            progress.advance,
        )
    findings = prepared.findings
    expected = prepared.entry.samples
    typer.echo(f"{name}: {findings.size:,} samples" + ("" if expected is None else f" of {expected:,} published"))
    typer.echo("\n".join(_report(findings)))
    if expected is not None and expected != findings.size:
        typer.echo(f"  {abs(expected - findings.size):,} samples {'fewer' if expected > findings.size else 'more'} "
                   "than were published: is the download complete?")  # fmt: skip
    typer.echo(f"Wrote {prepared.registry}. Use it with: --registry {prepared.registry} --data {prepared.names[-1]}")
