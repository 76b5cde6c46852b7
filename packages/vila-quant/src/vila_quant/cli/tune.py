"""`vila-quant tune`: measure the fastest settings of the four-bit kernels on this machine's GPU."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vila_core.cli.options import MODEL, OUTPUT, AsJson, Device, Offline, Revision
from vila_core.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from vila_quant.checking.tuned_shapes import TunedShapes
    from vila_quant.kernels.cuda.w4a16.tune import Gain, Timer

SHAPES = "nvila-8b"


def tune_kernels(
    model: Annotated[str | None, typer.Argument(help=f"Folder or hub id; by default, the shapes of {SHAPES}.")] = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The shapes of nvila-0.5b, nvila-3b, nvila-8b or vila1.5-40b.", rich_help_panel=MODEL
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the table here.", rich_help_panel=OUTPUT),
    ] = None,
    device: Device = "auto",
    dtype: Annotated[
        str, typer.Option(metavar="NAME", help="Of the activations: float16 or bfloat16.", rich_help_panel=MODEL)
    ] = "float16",
    revision: Revision = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Measure which settings of the four-bit kernels are fastest on this GPU, for the shapes of a model.

    Takes a few minutes and reads no weights. The table goes to the cache, where the kernels find it the next time they
    run on this GPU; what was tuned for other shapes stays. H100 and H200 come with tables.

    [bold]Examples:[/bold]

    vila-quant tune my-model-awq

    vila-quant tune --shapes nvila-3b --output rtx-4090.json [dim]# to share[/dim]
    """
    from vila_core.checkpoint import open_checkpoint
    from vila_quant.checking.tuned_shapes import named_shapes, shapes_of_checkpoint

    if model is not None and shapes is not None:
        raise ConfigError("Give a model or --shapes, not both.")
    if dtype not in ("float16", "bfloat16", "fp16", "bf16"):
        raise ConfigError(unknown_name("dtype", dtype, ["float16", "bfloat16"]))
    if model is None:
        wanted = named_shapes(shapes or SHAPES)
    else:
        wanted = shapes_of_checkpoint(open_checkpoint(model, revision=revision, offline=offline))
    timer = open_timer(device, dtype, wanted.group_size)
    _tune(wanted, timer, output, as_json=as_json)


def open_timer(device: str, dtype: str, group_size: int) -> "Timer":
    """Return a timer of products on the GPU. Raises `ConfigError` if no GPU here can run the kernels."""
    import torch

    from vila_core.device_choice import choose_device
    from vila_core.ops.support import refusal

    kind = torch.bfloat16 if dtype in ("bfloat16", "bf16") else torch.float16
    chosen = choose_device(device)
    if chosen.type != "cuda":
        raise ConfigError(
            "`vila-quant tune` measures an NVIDIA GPU. "
            + ("There is none here: run `vila doctor` to see why." if device == "auto" else f"Got --device {device}.")
        )
    if reason := refusal(chosen, kind):
        raise ConfigError(f"The four-bit kernels do not run on {torch.cuda.get_device_name(chosen)}: {reason}.")
    torch.cuda.set_device(chosen)  # Triton launches kernels there
    from vila_quant.kernels.cuda.w4a16.timing import GpuTimer  # needs Triton

    return GpuTimer(chosen, kind, group_size)


def _tune(wanted: "TunedShapes", timer: "Timer", output: Path | None, *, as_json: bool) -> None:
    import torch

    from vila_core.cli.progress import open_progress
    from vila_quant.kernels.cuda.w4a16.tables import check_writable, save, tuned_file
    from vila_quant.kernels.cuda.w4a16.tune import tune

    used = tuned_file(timer.gpu)
    path = used if output is None else output.expanduser()
    check_writable(path, is_cache=output is None)
    try:
        with open_progress("products") as progress:
            table, gains = tune(wanted.shapes, timer, progress)
    except torch.OutOfMemoryError:
        raise ConfigError(f"The memory of {timer.gpu} is full. Close other programs that use it.") from None
    save(table, path)
    if as_json:
        typer.echo(json.dumps(_as_dict(wanted, timer, path, gains), indent=2))
        return
    _print(wanted, timer, gains)
    typer.echo(f"Written to {path}.")
    if path != used:
        typer.echo(f"To use it on this machine, copy it to {used}.")


def _as_dict(wanted: "TunedShapes", timer: "Timer", path: Path, gains: "list[Gain]") -> dict[str, object]:
    products = [
        {
            "tokens": gain.tokens,
            "outputs": gain.shape[0],
            "inputs": gain.shape[1],
            "before_us": round(1e3 * gain.before, 3),
            "after_us": round(1e3 * gain.after, 3),
        }
        for gain in gains
    ]
    return {"gpu": timer.gpu, "file": str(path), "group_size": wanted.group_size, "products": products}


def _print(wanted: "TunedShapes", timer: "Timer", gains: "list[Gain]") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    sizes = ", ".join(f"{outputs} x {inputs}" for outputs, inputs in wanted.shapes)
    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
    table.title = escape(f"{timer.gpu}: one linear each of {sizes}")
    for column in ("tokens", "before, µs", "tuned, µs", "gain"):
        table.add_column(column, justify="right")
    for tokens in dict.fromkeys(gain.tokens for gain in gains):
        here = [gain for gain in gains if gain.tokens == tokens]
        before, after = sum(gain.before for gain in here), sum(gain.after for gain in here)
        table.add_row(str(tokens), f"{1e3 * before:.1f}", f"{1e3 * after:.1f}", f"{before / after:.2f} x")
    Console().print(table)
