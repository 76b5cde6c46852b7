"""`vila-quant check`: parse the options, call `check`, and print tables or JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vila_core.cli.option_groups import with_option_groups
from vila_core.cli.options import AsJson, Device, Dtype, Offline
from vila_core.cli.progress import open_progress
from vila_core.strict_json import to_strict_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from vila_quant.checking.check import CheckReport

COMPARISON, BENCHMARKS = "Comparison", "Benchmarks"
"""Panels of the help page."""


@dataclass(frozen=True)
class Prompts:
    """What to compare the models on."""

    prompts: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="A .jsonl or .txt file, a folder of media, or a dataset by name; auto uses texts and images that no "
            "calibration contains.",
            rich_help_panel=COMPARISON,
        ),
    ] = "auto"
    number: Annotated[int, typer.Option(metavar="N", min=1, help="Number of prompts.", rich_help_panel=COMPARISON)] = 16


@dataclass(frozen=True)
class Benchmarks:
    """Benchmarks of vila-eval to run on both models."""

    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            "-t",
            metavar="TASK",
            help="Benchmarks of vila-eval to run on both models, comma-separated or repeated.",
            rich_help_panel=BENCHMARKS,
        ),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Use only the first N rows of each.", rich_help_panel=BENCHMARKS),
    ] = None
    results: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Folder for answers; the same command continues an interrupted run.",
            rich_help_panel=BENCHMARKS,
        ),
    ] = Path("results")

    @property
    def names(self) -> list[str]:
        return [name.strip() for given in self.tasks or () for name in given.split(",") if name.strip()]


@with_option_groups
def check_model(
    model: Annotated[str, typer.Argument(metavar="OUT", help="Folder or hub id of the quantized model.")],
    prompts: Prompts,
    benchmarks: Benchmarks,
    against: Annotated[
        str,
        typer.Option(
            "--against",
            "-a",
            metavar="MODEL",
            help="The original: folder or hub id of a model or of a LoRA adapter.",
            show_default=False,
        ),
    ],
    kernel: Annotated[
        str | None, typer.Option(metavar="NAME", help="Kernel for the quantized linears; by default the best for each.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Compare a quantized model with its original: layer by layer, next-token distributions, size, and benchmarks.

    [bold]Example:[/bold] vila-quant check my-model-awq --against my-model --tasks vila/blocks
    """
    from vila_quant.checking.check import check

    with open_progress() as progress:
        report = check(
            model,
            against,
            prompts=prompts.prompts,
            number=prompts.number,
            tasks=benchmarks.names,
            limit=benchmarks.limit,
            results=benchmarks.results.expanduser(),
            kernel=kernel,
            device=device,
            dtype=dtype,
            offline=offline,
            progress=progress,
        )
    if as_json:
        typer.echo(to_strict_json(report.model_dump(mode="json"), indent=2, ensure_ascii=False))
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
        "Relative error, given the original's input": _layers(report),
        "Next-token distributions, on held-out prompts": _answers(report),
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
    table = _table("prompts", "tokens", "KL, nats", "same top token", "perplexity before", "after")
    kinds = {"text": report.text, "with media": report.multimodal, "drawing (codes)": report.drawing}
    for name, found in kinds.items():
        if found is None:
            continue
        spread = "" if found.kl_standard_error is None else f" ± {found.kl_standard_error:.4f}"
        table.add_row(
            f"{found.prompts} {name}",
            f"{found.tokens:,}",
            f"{found.kl:.4f}{spread}",
            f"{found.top1_agreement:.1%}",
            _perplexity(found.perplexity_before),
            _perplexity(found.perplexity_after),
        )
    return table


def _tasks(report: CheckReport) -> Table:
    table = _table("task", "measure", "before", "after", "difference", "p", "samples")
    for task in report.tasks:
        factor = 100 if task.unit == "share" else 1
        spread = f" ± {factor * task.standard_error:.2f}" if task.standard_error else ""  # 0: no answer differs
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


def _perplexity(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _bytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.2f} MB"
