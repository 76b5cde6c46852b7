"""`vila-quant awq`: quantize a model. Flags become options; then one library call."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vila_core.errors import ConfigError


class Head(StrEnum):
    """How the output head is stored."""

    none = "none"
    int8 = "int8"
    int4 = "int4"


class Vision(StrEnum):
    """How the vision tower's linears are stored."""

    none = "none"
    int8 = "int8"
    fp8 = "fp8"


class Format(StrEnum):
    """Of the folder that is written."""

    awq = "awq"
    tinychat = "tinychat"


def quantize(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Folder or hub id of whole weights, in any format; or of a LoRA adapter, which names its base.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    bits: Annotated[int, typer.Option(help="Bits of a weight.", min=4, max=4, rich_help_panel="Weights")] = 4,
    group_size: Annotated[
        int, typer.Option("--group-size", "-g", help="128, 64 or 32.", rich_help_panel="Weights")
    ] = 128,
    lm_head: Annotated[
        Head, typer.Option("--lm-head", help="The output head too.", rich_help_panel="Weights")
    ] = Head.none,
    vision: Annotated[
        Vision, typer.Option(help="The vision tower's linears too.", rich_help_panel="Weights")
    ] = Vision.none,
    vision_alpha: Annotated[
        float | None,
        typer.Option(
            "--vision-alpha", metavar="A", help="SmoothQuant's α, 0 to 1; else searched.", rich_help_panel="Weights"
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Leave these linears whole: 'llm.model.layers.0.*'. Repeatable.",
            rich_help_panel="Weights",
        ),
    ] = None,
    search: Annotated[
        str,
        typer.Option(
            "--search",
            "-s",
            metavar="NAME",
            help="best, reference, nearest, a plugin's, or a .pt of AWQ search results.",
            rich_help_panel="Weights",
        ),
    ] = "best",
    calibration: Annotated[
        str,
        typer.Option(
            "--calibration",
            "-c",
            metavar="SOURCE",
            help="A folder of images and videos (NAME.txt beside one is its prompt), a .jsonl or .txt file, a registered dataset, "
            "or builtin, which needs no network.",
            rich_help_panel="Calibration",
        ),
    ] = "auto",
    sequences: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Else 128 on a GPU, 16 on a CPU.", rich_help_panel="Calibration"),
    ] = None,
    sequence_length: Annotated[
        int,
        typer.Option("--sequence-length", metavar="T", min=16, help="Tokens of each.", rich_help_panel="Calibration"),
    ] = 512,
    seed: Annotated[int, typer.Option(help="Of the order of samples.", rich_help_panel="Calibration")] = 0,
    conv_mode: Annotated[
        str,
        typer.Option(
            "--conv-mode",
            metavar="NAME",
            help="Chat template; auto is the checkpoint's own.",
            rich_help_panel="Calibration",
        ),
    ] = "auto",
    lora_path: Annotated[
        str | None,
        typer.Option(
            "--lora-path", "-l", metavar="FOLDER", help="Merge this LoRA adapter first.", rich_help_panel="Model"
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of MODEL on the hub.", rich_help_panel="Model")
    ] = None,
    offline: Annotated[
        bool,
        typer.Option("--offline", metavar="", help="Use what is in the hub's cache only.", rich_help_panel="Model"),
    ] = False,
    format: Annotated[Format, typer.Option("--format", "-f", help="Of OUT.", rich_help_panel="Output")] = Format.awq,
    search_results: Annotated[
        bool,
        typer.Option(
            "--search-results",
            metavar="",
            help="Write scales and clips too, as llm-awq does; --search applies them.",
            rich_help_panel="Output",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Print the report as JSON.", rich_help_panel="Output")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel="Run")] = "auto",
    restart: Annotated[
        bool,
        typer.Option(
            "--restart", metavar="", help="Forget the unfinished work of an earlier run.", rich_help_panel="Run"
        ),
    ] = False,
) -> None:
    """Quantize a model to four bits. After any stop, the same command goes on where it was; OUT appears when it is whole.

    [bold]Example:[/bold] vila-quant awq my-fine-tune my-fine-tune-awq --calibration photos/ --lm-head int8 --vision int8
    """
    from pydantic import ValidationError

    from vila_quant.cli.progress import open_progress
    from vila_quant.quantizing.options import QuantizationOptions

    values = {
        "bits": bits,
        "group_size": group_size,
        "lm_head": lm_head.value,
        "vision": vision.value,
        "vision_alpha": vision_alpha,
        "skip": tuple(skip or ()),
        "search": search,
        "calibration": calibration,
        "sequences": sequences,
        "sequence_length": sequence_length,
        "seed": seed,
        "chat_template": None if conv_mode == "auto" else conv_mode,
        "format": format.value,
        "search_results": search_results,
    }
    try:
        options = QuantizationOptions.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ConfigError(
            f"--{str(problem['loc'][0]).replace('_', '-')}: {problem['msg']} (got {problem['input']!r})."
        ) from None

    from vila_quant.quantizing.pipeline import quantize_model

    with open_progress() as progress:
        report = quantize_model(
            model,
            out,
            options,
            progress,
            device=device,
            lora=lora_path,
            revision=revision,
            offline=offline,
            restart=restart,
        )
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        sizes = report.sizes
        typer.echo(
            f"Wrote {out}: {sizes.before / 1e6:,.1f} MB became {sizes.after / 1e6:,.1f} MB in {sum(report.seconds.values()):.0f} s."
        )
        typer.echo(
            f"Of the loss of plain rounding, {report.remaining:.1%} is left; {out / 'quantization_report.html'} shows it by layer."
        )
