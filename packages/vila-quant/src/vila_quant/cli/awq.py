"""`vila-quant awq`: parse the options, call `quantize_model`, and print its result."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vila_core.cli.option_groups import with_option_groups
from vila_core.cli.options import AsJson, Device, LoraPath, Offline, Revision
from vila_core.errors import ConfigError, SettingError, shown

if TYPE_CHECKING:
    from vila_quant.quantizing.options import QuantizationOptions

WEIGHTS, CALIBRATION, OUTPUT, OTHER = "Weights", "Calibration", "Output", "Other"
"""Panels of the help page."""


class Head(StrEnum):
    """How to store the output head."""

    none = "none"
    int8 = "int8"
    int4 = "int4"


class Vision(StrEnum):
    """How to store the linears of the vision tower."""

    none = "none"
    int8 = "int8"
    fp8 = "fp8"


class Format(StrEnum):
    """Output checkpoint format."""

    awq = "awq"
    tinychat = "tinychat"


@dataclass(frozen=True)
class WeightOptions:
    """What to quantize, and how."""

    bits: Annotated[int, typer.Option(help="Bits per weight: 4.", metavar="4", rich_help_panel=WEIGHTS)] = 4
    group_size: Annotated[int, typer.Option("--group-size", "-g", help="128, 64 or 32.", rich_help_panel=WEIGHTS)] = 128
    lm_head: Annotated[
        Head, typer.Option("--lm-head", help="Also quantize the output head.", rich_help_panel=WEIGHTS)
    ] = Head.none
    vision: Annotated[
        Vision, typer.Option(help="Also quantize the vision tower's linears.", rich_help_panel=WEIGHTS)
    ] = Vision.none
    vision_alpha: Annotated[
        float | None,
        typer.Option(
            "--vision-alpha",
            metavar="A",
            help="SmoothQuant's α, 0 to 1; by default it is searched.",
            rich_help_panel=WEIGHTS,
        ),
    ] = None
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Do not quantize these linears: 'llm.model.layers.0.*'. Repeatable.",
            rich_help_panel=WEIGHTS,
        ),
    ] = None
    search: Annotated[
        str,
        typer.Option(
            "--search",
            "-s",
            metavar="NAME",
            help="best, reference, nearest, a plugin's method, or a .pt file of AWQ search results.",
            rich_help_panel=WEIGHTS,
        ),
    ] = "best"


@dataclass(frozen=True)
class CalibrationOptions:
    """What to calibrate on."""

    calibration: Annotated[
        str,
        typer.Option(
            "--calibration",
            "-c",
            metavar="SOURCE",
            help="A folder of images and videos (NAME.txt beside one is its prompt), a .jsonl or .txt file, "
            "a registered dataset, or builtin, which needs no network.",
            rich_help_panel=CALIBRATION,
        ),
    ] = "auto"
    sequences: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Default: 128 on a GPU, 16 on a CPU.", rich_help_panel=CALIBRATION),
    ] = None
    sequence_length: Annotated[
        int,
        typer.Option(
            "--sequence-length", metavar="T", min=16, help="Tokens per sequence.", rich_help_panel=CALIBRATION
        ),
    ] = 512
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Seed for the order of samples.", rich_help_panel=CALIBRATION)
    ] = 0
    conv_mode: Annotated[
        str,
        typer.Option(
            "--conv-mode",
            metavar="NAME",
            help="Chat template; auto is the checkpoint's own.",
            rich_help_panel=CALIBRATION,
        ),
    ] = "auto"


@dataclass(frozen=True)
class OutputOptions:
    """What to write."""

    format: Annotated[
        Format, typer.Option("--format", "-f", help="Checkpoint format of OUT.", rich_help_panel=OUTPUT)
    ] = Format.awq
    search_results: Annotated[
        bool,
        typer.Option(
            "--search-results",
            metavar="",
            help="Also write scales and clips, as llm-awq does; --search applies them.",
            rich_help_panel=OUTPUT,
        ),
    ] = False
    as_json: AsJson = False


@dataclass(frozen=True)
class SourceOptions:
    """Where the model comes from, and where it is quantized."""

    lora_path: LoraPath = None
    revision: Revision = None
    offline: Offline = False
    device: Device = "auto"


@with_option_groups
def quantize(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Folder or hub id of an unquantized model, in any format, or of a LoRA adapter that names its base.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    weights: WeightOptions,
    samples: CalibrationOptions,
    source: SourceOptions,
    output: OutputOptions,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart", metavar="", help="Discard the unfinished work of an earlier run.", rich_help_panel=OTHER
        ),
    ] = False,
) -> None:
    """Quantize a model to 4 bits. If interrupted, rerun the same command to resume; OUT is written once it is complete.

    [bold]Example:[/bold] vila-quant awq my-fine-tune my-fine-tune-awq --calibration photos/ --lm-head int8
    """
    from vila_core.cli.progress import open_progress

    options = _options(weights, samples, output)

    from vila_quant.quantizing.pipeline import quantize_model
    from vila_quant.quantizing.report_files import read_report

    is_complete = read_report(out.expanduser()) is not None
    try:
        with open_progress() as progress:
            report = quantize_model(
                model,
                out,
                options,
                progress,
                device=source.device,
                lora=source.lora_path,
                revision=source.revision,
                offline=source.offline,
                restart=restart,
            )
    except KeyboardInterrupt:
        typer.echo("Stopped. Finished layers are kept: run the same command again to resume.", err=True)
        raise typer.Exit(130) from None
    if output.as_json:
        typer.echo(report.model_dump_json(indent=2))
        return
    sizes, seconds = report.sizes, sum(report.seconds.values())
    done = f"{out} is already complete" if is_complete else f"Wrote {out}"
    typer.echo(f"{done}: {sizes.before / 1e6:,.1f} MB became {sizes.after / 1e6:,.1f} MB in {seconds:.0f} s.")
    typer.echo(
        f"Quantization error: {report.remaining:.1%} of plain rounding's; "
        f"{out / 'quantization_report.html'} shows it by layer."
    )


def _options(weights: WeightOptions, samples: CalibrationOptions, output: OutputOptions) -> "QuantizationOptions":
    from vila_quant.quantizing.options import QuantizationOptions

    values = {
        "bits": weights.bits,
        "group_size": weights.group_size,
        "lm_head": weights.lm_head.value,
        "vision": weights.vision.value,
        "vision_alpha": weights.vision_alpha,
        "skip": tuple(weights.skip or ()),
        "search": weights.search,
        "calibration": samples.calibration,
        "sequences": samples.sequences,
        "sequence_length": samples.sequence_length,
        "seed": samples.seed,
        "chat_template": None if samples.conv_mode == "auto" else samples.conv_mode,
        "format": output.format.value,
        "search_results": output.search_results,
    }
    try:
        return QuantizationOptions.model_validate(values)
    except SettingError as error:
        flag = error.problem.path.replace("_", "-")
        raise ConfigError(f"--{flag}: {error.problem.message} (got {shown(error.problem.value)}).") from None
