"""`vila-quant kernels`: which kernel runs each layer on this machine, and why."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from vila_core.cli.options import AsJson, Device, Dtype, Offline, Revision
from vila_core.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from vila_quant.checking.kernel_choices import Choice


def list_kernels(
    model: Annotated[str | None, typer.Argument(help="Folder or hub id; by default, the shapes of NVILA-8B.")] = None,
    kernel: Annotated[
        str | None, typer.Option(metavar="NAME", help="Use this kernel, or fail with its reason to refuse.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Show which kernel runs each layer on this machine and why, and why others do not. Reads no weights.

    From Python, request a kernel with [bold]with vila_quant.kernels.forced("reference"): vila_core.load(…)[/bold]

    [bold]Example:[/bold] vila-quant kernels my-model-awq --device cpu --dtype bfloat16
    """
    from vila_core.checkpoint import open_checkpoint
    from vila_core.checkpoint.sizes import estimate
    from vila_core.device_choice import DTYPES, choose_device, choose_dtype
    from vila_quant.checking.kernel_choices import NVILA_8B, choices, layers_of
    from vila_quant.kernels import forced

    target = choose_device(device)
    if model is None:
        layers = NVILA_8B
        if dtype not in (*DTYPES, "auto"):
            raise ConfigError(unknown_name("dtype", dtype, [*DTYPES, "auto"]))
        chosen = DTYPES["bfloat16" if dtype == "auto" else dtype]
    else:
        checkpoint = open_checkpoint(model, revision=revision, offline=offline)
        layers = layers_of(checkpoint)
        chosen = choose_dtype(dtype, checkpoint.config, estimate(checkpoint).parameters, target)
    with forced(kernel):
        found = choices(layers, target, chosen)
    name = str(chosen).removeprefix("torch.")
    if as_json:
        typer.echo(
            json.dumps(
                {"device": str(target), "dtype": name, "layers": [_as_dict(choice) for choice in found]}, indent=2
            )
        )
    else:
        _print(found, f"{model or 'NVILA-8B'} on {target} in {name}")


def _as_dict(choice: "Choice") -> dict[str, object]:
    shape = choice.shape
    sizes = {"outputs": shape.outputs, "inputs": shape.inputs, "group_size": shape.group_size, "bits": shape.bits}
    return {
        "layers": list(choice.layers),
        **sizes,
        "scheme": shape.scheme,
        "kernel": choice.kernel,
        "reason": choice.reason,
        "refusals": dict(choice.refusals),
    }


def _print(found: "list[Choice]", title: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(box=None, header_style="bold", pad_edge=False, title=escape(title), title_justify="left")
    table.add_column("layers")
    for column in ("outputs", "inputs", "group"):
        table.add_column(column, justify="right")
    table.add_column("scheme")
    table.add_column("kernel", no_wrap=True)
    table.add_column("why")
    for choice in found:
        shape, names = choice.shape, _short(choice.layers)
        table.add_row(
            escape(names),
            str(shape.outputs),
            str(shape.inputs),
            str(shape.group_size) if shape.scheme == "int4" else "",
            shape.scheme,
            escape(choice.kernel),
            escape(choice.reason),
        )
    console.print(table)
    refusals = dict.fromkeys((name, reason) for choice in found for name, reason in choice.refusals.items())
    if refusals:
        console.print("\n[bold]Not used[/bold]")
        for name, reason in refusals:
            console.print(f"{escape(name)}: {escape(reason)}", soft_wrap=True)


def _short(layers: tuple[str, ...]) -> str:
    """Return the last component of each name, such as "q_proj, o_proj"."""
    return ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in layers))
