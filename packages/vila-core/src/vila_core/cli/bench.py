"""`vila bench`: how fast a model runs on this machine, beside the limits of its hardware."""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vila_core.cli.options import MODEL, AsJson, Device, Dtype, Offline, Revision, name_embedded_model
from vila_core.errors import ConfigError, printable, unknown_name

if TYPE_CHECKING:
    from rich.console import Console

    from vila_core.bench.limits import Limits
    from vila_core.bench.measure import Measurement
    from vila_core.bench.predictions import Prediction
    from vila_core.checkpoint import Checkpoint

CONTEXT = 300
ROOM = 16
"""Tokens of the model's context that are left for the answer and for the prompt's own words."""
SMALL = 64 << 20
"""Bytes of a language model that a processor's cache may hold."""


@dataclass(frozen=True)
class Report:
    """What was measured, and where. `published` are the values that TinyChat's authors report for this GPU."""

    model: str
    weights: str
    device: str
    dtype: str
    threads: int | None
    limits: "Limits"
    results: "tuple[Measurement, ...]"
    published: dict[str, float]
    is_small: bool


ModelName = Annotated[str | None, typer.Argument(metavar="MODEL", help="Folder or hub id; without it, the demo model.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", metavar="MODEL", help="The same.", rich_help_panel=MODEL)
]
Shapes = Annotated[
    str | None,
    typer.Option(
        "--shapes",
        metavar="NAME",
        help="Random weights of these shapes instead: nvila-0.5b, nvila-3b, nvila-8b or vila1.5-40b.",
        rich_help_panel=MODEL,
    ),
]
Weights = Annotated[
    str, typer.Option("--weights", metavar="KIND", help="Of --shapes: w4 (4 bits) or bf16.", rich_help_panel=MODEL)
]
Context = Annotated[int, typer.Option("--context", metavar="N", min=1, help="Tokens before the decoded ones.")]
Predict = Annotated[
    bool, typer.Option("--predict", metavar="", help="Measure nothing: print predicted decode rates of common GPUs.")
]


def measure_speed(
    model: ModelName = None,
    model_option: ModelOption = None,
    shapes: Shapes = None,
    weights: Weights = "w4",
    context: Context = CONTEXT,
    predict: Predict = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Measure decoding, the first token of a prompt with an image, and prefill, with one sequence.

    The limits are measured in the same run: decoding cannot be faster than reading the weights and the cache once per
    token, prefill and images not faster than the products with the weights.

    [bold]Examples[/bold]

    vila bench [dim]# the embedded model, some seconds[/dim]

    vila bench my-fine-tune-awq --json

    vila bench --shapes nvila-8b [dim]# random 4-bit weights: nothing to download[/dim]

    vila bench --predict
    """
    if predict:
        _print_predictions(as_json)
        return
    if model is not None and model_option is not None:
        raise ConfigError("The model is named twice: as MODEL and with --model.")
    model = model if model is not None else model_option
    if model is not None and shapes is not None:
        raise ConfigError("--shapes measures random weights instead of a model. Give a model or --shapes, not both.")
    checkpoint = _random(shapes, weights) if shapes is not None else _open(model, revision, offline)
    report = _measure(checkpoint, shapes, device, dtype, context)
    if as_json:
        typer.echo(json.dumps(_as_dict(report), indent=2))
    else:
        from rich.console import Console

        _print(report, Console())


def _open(model: str | None, revision: str | None, offline: bool) -> "Checkpoint":
    from vila_core.checkpoint import open_checkpoint
    from vila_core.checkpoint.embedded import EMBEDDED_MODEL

    name_embedded_model(model, "vila bench MODEL")
    return open_checkpoint(model or EMBEDDED_MODEL, revision=revision, offline=offline)


def _random(shapes: str, weights: str) -> "Checkpoint":
    from vila_core.bench.random_model import WEIGHT_KINDS, random_checkpoint

    for kind in WEIGHT_KINDS:
        if weights == kind:
            return random_checkpoint(shapes, kind)
    raise ConfigError(unknown_name("kind of weights", weights, WEIGHT_KINDS))


def _measure(checkpoint: "Checkpoint", shapes: str | None, device: str, dtype: str, context: int) -> Report:
    from vila_core.cli.progress import show_phases

    with show_phases("Importing torch") as show:
        import torch

        from vila_core.bench.limits import measure_limits
        from vila_core.bench.measure import measure
        from vila_core.bench.published import published
        from vila_core.bench.work import work_of
        from vila_core.device_choice import choose_device
        from vila_core.loading import load_checkpoint

        target = choose_device(device)
        longest = checkpoint.config.language_model.max_length - ROOM
        if context > longest:
            raise ConfigError(f"--context is {context:,}; of this model's context it can be at most {longest:,}.")
        show("Loading")
        model = load_checkpoint(checkpoint, device=target, dtype=dtype, progress=False)
        show("Measuring the limits of the hardware")
        limits = measure_limits(target, model.dtype)
        name = str(model.dtype).removeprefix("torch.")
        work = work_of(checkpoint, name)
        results = tuple(measure(model, work, limits, context=context, on_phase=show))
    is_gpu = target.type == "cuda"
    gpu = torch.cuda.get_device_name(target) if is_gpu else ""
    quantization = checkpoint.quantization
    kind = "w4" if quantization is not None else "bf16"
    known = {quantity: published(shapes or "", kind, quantity, gpu) for quantity in ("decode", "first token")}
    return Report(
        model=model.name,
        weights="not quantized" if quantization is None else quantization.method,
        device=gpu or "CPU",
        dtype=name,
        threads=None if is_gpu else torch.get_num_threads(),
        limits=limits,
        results=results,
        published={quantity: value for quantity, value in known.items() if value is not None},
        is_small=not is_gpu and work.weight_bytes < SMALL,
    )


def _as_dict(report: Report) -> dict[str, Any]:
    import torch

    import vila_core

    values = asdict(report)
    values["results"] = [
        asdict(result) | {"unit": _unit(result), "of_limit": result.of_limit} for result in report.results
    ]
    return values | {"torch": torch.__version__, "vila_core": vila_core.__version__}


def _print(report: Report, console: "Console") -> None:
    from rich.markup import escape
    from rich.table import Table

    threads = "" if report.threads is None else f", {report.threads} threads"
    console.print(f"[bold]{escape(printable(report.model))}[/bold], {report.weights}")
    console.print(f"{escape(report.device)}, {report.dtype}{threads}")
    console.print(
        f"limits measured now: reads {report.limits.bytes_per_second / 1e9:,.0f} GB/s, multiplies "
        f"{report.limits.operations_per_second / 1e12:,.3g} TFLOP/s\n"
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("", "measured", "limit", "of limit", *(["TinyChat"] if report.published else [])):
        table.add_column(title, justify="left" if not title else "right")
    for result in report.results:
        known = report.published.get(result.name)
        row = [_title(result), _shown(result, result.value), _shown(result, result.limit), f"{result.of_limit:.0%}"]
        table.add_row(*row, *([_shown(result, known) if known else "-"] if report.published else []))
    console.print(table)
    if report.is_small:
        console.print("\n[dim]So small a model fits in the cache and waits for Python: the limits say little.[/dim]")
    if report.published:
        console.print("\n[dim]TinyChat: what its authors report for this GPU.[/dim]")


def _title(result: "Measurement") -> str:
    if result.name == "decode":
        return f"decode, after {result.tokens:,} tokens"
    return f"{result.name}, {'image, ' if result.name == 'first token' else ''}{result.tokens:,} tokens"


def _unit(result: "Measurement") -> str:
    return "tokens/s" if result.is_rate else "s"


def _shown(result: "Measurement", value: float) -> str:
    if result.is_rate:
        return f"{value:,.1f} tok/s" if value < 1000 else f"{value:,.0f} tok/s"
    return f"{1e3 * value:,.1f} ms" if value < 10 else f"{value:,.1f} s"


def _print_predictions(as_json: bool) -> None:
    from vila_core.bench.predictions import CONTEXT as AFTER
    from vila_core.bench.predictions import predict, predicted_text

    rows = predict()
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    models: dict[str, list[Prediction]] = {}
    for row in rows:
        models.setdefault(f"{row.model} {row.weights}", []).append(row)
    console = Console()
    console.print(f"[bold]Predicted, not measured:[/bold] tokens per second after {AFTER} tokens, one sequence")
    console.print("[dim]in parentheses: what TinyChat's authors report for this GPU[/dim]\n")
    for title, of_model in models.items():
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column(title, min_width=22)
        for column in ("limit of memory", "predicted"):
            table.add_column(column, justify="right", min_width=16)
        for row in of_model:
            table.add_row(row.gpu, "-" if row.limit is None else f"{row.limit:,.0f}", predicted_text(row))
        console.print(table)
        console.print()
