"""`vila-quant check`: what a quantized model lost. Flags become arguments of one library call; then tables, or JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vila_quant.cli.progress import open_progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from vila_quant.checking.check import CheckReport


def check_model(
    model: Annotated[str, typer.Argument(metavar="OUT", help="Folder or hub id of the quantized model.")],
    against: Annotated[
        str,
        typer.Option(
            "--against",
            "-a",
            metavar="MODEL",
            help="What it was made from: folder or hub id, of a LoRA adapter too.",
            show_default=False,
        ),
    ],
    prompts: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="A .jsonl or .txt file, a folder of media, or a dataset by name; auto takes texts and pictures that no calibration shows.",
        ),
    ] = "auto",
    number: Annotated[int, typer.Option(metavar="N", min=1, help="Prompts to compare on.")] = 16,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            "-t",
            metavar="TASK",
            help="Benchmarks of vila-eval, comma-separated or repeated; both models run them.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Rows of each benchmark, from the first.")
    ] = None,
    results: Annotated[
        Path, typer.Option(metavar="DIR", help="For vila-eval's answers; the same command goes on from there.")
    ] = Path("results"),
    kernel: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the quantized linears; else the best for each.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Of activations: auto (the original's), bfloat16, float16 or float32.")
    ] = "auto",
    offline: Annotated[
        bool, typer.Option("--offline", metavar="", help="Use what is in the hub's cache only.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print a JSON object.")] = False,
) -> None:
    """Compare a quantized model with the one it was made from: layer by layer, its answers' distribution, its size, benchmarks.

    [bold]Example:[/bold] vila-quant check my-model-awq --against my-model --tasks vila/blocks
    """
    from vila_quant.checking.check import check

    names = [name.strip() for given in tasks or () for name in given.split(",") if name.strip()]
    with open_progress() as progress:
        report = check(
            model,
            against,
            prompts=prompts,
            number=number,
            tasks=names,
            limit=limit,
            results=results.expanduser(),
            kernel=kernel,
            device=device,
            dtype=dtype,
            offline=offline,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(report.model_dump(mode="json"), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    _print(report, Console())


def _print(report: CheckReport, console: Console) -> None:
    from rich.markup import escape

    console.print(
        f"[bold]{escape(report.model)}[/bold] ({escape(report.method)}) against [bold]{escape(report.against)}[/bold], "
        f"on {report.device} in {report.dtype}\n",
        highlight=False,
    )
    tables = {
        "Size": _sizes(report),
        "Relative error, with the original's input": _layers(report),
        "Answers, on held-out prompts": _answers(report),
        "Benchmarks, shares in percent": _tasks(report),
    }
    for title, table in tables.items():
        if table.row_count:
            console.print(f"[dim]{title}[/dim]")
            console.print(table)
            console.print()


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _sizes(report: CheckReport) -> Table:
    table = _table("part", "before", "after", "")
    parts = {name: (part.before, part.after) for name, part in report.sizes.parts.items()}
    for name, (before, after) in {**parts, "all": (report.sizes.before, report.sizes.after)}.items():
        table.add_row(name, _bytes(before), _bytes(after), f"{after / before:.0%}" if before else "")
    return table


def _layers(report: CheckReport) -> Table:
    table = _table("part", "error", "")
    rows = [(f"block {number}", error) for number, error in enumerate(report.layers)]
    rows += [("vision tower", report.vision)] if report.vision is not None else []
    largest = max((error for _, error in rows), default=0.0)
    for name, error in rows:
        table.add_row(name, f"{error:.4f}", "█" * round(24 * error / largest) if largest else "")
    table.columns[2].justify = "left"
    return table


def _answers(report: CheckReport) -> Table:
    table = _table("prompts", "tokens", "KL, nats", "same first choice", "perplexity before", "after")
    for name, found in (("text", report.text), ("with media", report.multimodal)):
        if found is None:
            continue
        spread = "" if found.kl_standard_error is None else f" ± {found.kl_standard_error:.4f}"
        table.add_row(
            f"{found.prompts} {name}",
            f"{found.tokens:,}",
            f"{found.kl:.4f}{spread}",
            f"{found.top1_agreement:.1%}",
            f"{found.perplexity_before:,.4g}",
            f"{found.perplexity_after:,.4g}",
        )
    return table


def _tasks(report: CheckReport) -> Table:
    table = _table("task", "measure", "before", "after", "difference", "p", "samples")
    for task in report.tasks:
        factor = 100 if task.unit == "share" else 1
        spread = "" if task.standard_error is None else f" ± {factor * task.standard_error:.2f}"
        table.add_row(
            task.task,
            task.measure,
            f"{factor * task.before:.2f}",
            f"{factor * task.after:.2f}",
            f"{factor * task.difference:+.2f}{spread}",
            "–" if task.p_value is None else f"{task.p_value:.3f}",
            f"{task.samples:,}",
        )
    return table


def _bytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.2f} MB"
