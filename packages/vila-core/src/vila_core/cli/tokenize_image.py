"""`vila tokenize-image`: pictures to a file of codes, and back, with a model that draws (VILA-U)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vila_core.cli.options import MODEL, AsJson, Device, Dtype, Offline, Revision
from vila_core.errors import ConfigError, shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vila_core.generation.image_tokenizer import ImageTokenizer


def tokenize_image(
    sources: Annotated[
        list[str], typer.Argument(metavar="IN", help="Images (paths or URLs); with --decode, one file of codes.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="Codes (.npz); with --decode, a picture (.png).")
    ],
    model: Annotated[
        str, typer.Option("--model-path", "-m", metavar="MODEL", help="Folder or hub id.", rich_help_panel=MODEL)
    ],
    decode: Annotated[bool, typer.Option("--decode", metavar="", help="Make pictures of codes.")] = False,
    measure: Annotated[
        bool, typer.Option("--measure", metavar="", help="Decode again and print PSNR, SSIM and the use of codes.")
    ] = False,
    device: Device = "auto",
    dtype: Dtype = "float32",
    revision: Revision = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Turn pictures into codes, and codes into pictures. Only the tower of the model is loaded.

    [bold]Examples:[/bold]
    vila tokenize-image cat.png --out codes.npz -m mit-han-lab/vila-u-7b-256
    vila tokenize-image codes.npz --decode --out cat-again.png -m mit-han-lab/vila-u-7b-256
    """
    from vila_core.generation.code_files import read_codes, write_codes
    from vila_core.generation.files import numbered_paths, require_writable
    from vila_core.tower_loading import load_image_tokenizer

    _check_arguments(sources, out, decode=decode, measure=measure)
    codes, size = read_codes(sources[0]) if decode else (None, None)
    outputs = [out] if codes is None else numbered_paths(out, len(codes) if codes.ndim == 4 else 1)
    for path in outputs:  # before a model is loaded
        require_writable(path)
    tokenizer = load_image_tokenizer(model, device=device, dtype=dtype, revision=revision, offline=offline)
    if codes is not None:
        _require_same_codebook(size, tokenizer, sources[0])
        _write_pictures(tokenizer, codes, outputs)
        _report({"files": [str(path) for path in outputs], "images": len(outputs)}, as_json)
        return
    values = tokenizer.prepare(sources)
    found = tokenizer.encode_bytes(values)
    write_codes(out, found, tokenizer.codebook_size)
    facts: dict[str, object] = {
        "files": [str(out)],
        "images": len(found),
        "shape": list(found.shape),
        "codebook_size": tokenizer.codebook_size,
    }
    if measure:
        facts |= _measures(tokenizer, values.permute(0, 2, 3, 1).numpy(), found)
    _report(facts, as_json)


def _check_arguments(sources: list[str], out: Path, *, decode: bool, measure: bool) -> None:
    if decode and (len(sources) != 1 or measure):
        raise ConfigError("--decode takes one file of codes, and no --measure: there is no picture to compare with.")
    endings = (".png",) if decode else (".npz",)
    if out.suffix.lower() not in endings:
        hint = "" if decode else " To make a picture of codes, add --decode."
        raise ConfigError(f"--out is {shown(out.name)}; expected a name that ends in {endings[0]}.{hint}")


def _require_same_codebook(size: int | None, tokenizer: "ImageTokenizer", source: str) -> None:
    if size is not None and size != tokenizer.codebook_size:
        raise ConfigError(
            f"{source} was made with a codebook of {size:,} codes, but this model has {tokenizer.codebook_size:,}. "
            "Use the model that made it."
        )


def _write_pictures(tokenizer: "ImageTokenizer", codes: "NDArray[np.int64]", paths: Sequence[Path]) -> None:
    """Write one picture to each path. Codes that are wrong are found before anything is written."""
    import torch

    from vila_core.generation.files import write_picture
    from vila_core.generation.image_tokenizer import IMAGES_AT_ONCE

    codes = codes[None] if codes.ndim == 3 else codes
    tokenizer.tower.check_codes(torch.from_numpy(codes))
    for start in range(0, len(codes), IMAGES_AT_ONCE):
        pictures = tokenizer.decode(codes[start : start + IMAGES_AT_ONCE])
        for path, picture in zip(paths[start:], pictures, strict=False):
            write_picture([picture], path)


def _measures(
    tokenizer: "ImageTokenizer", originals: "NDArray[np.uint8]", codes: "NDArray[np.int64]"
) -> dict[str, object]:
    from vila_core.generation.reconstruction import code_usage, measure_pictures

    quality = measure_pictures(tokenizer.decode_bytes(codes), originals)
    usage = code_usage(codes, tokenizer.codebook_size)
    return {
        "psnr": quality.psnr,
        "ssim": quality.ssim,
        "codes_used": [depth.used for depth in usage],
        "perplexity": [depth.perplexity for depth in usage],
    }


def _report(facts: dict[str, object], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    files = facts["files"]
    assert isinstance(files, list)
    typer.echo(f"Wrote {', '.join(map(str, files))}.")
    if "shape" in facts:
        typer.echo(f"Codes: {facts['shape']} (images, rows, columns, depth), each below {facts['codebook_size']}.")
    if "psnr" in facts:
        typer.echo(f"PSNR: {facts['psnr']:.2f} dB   SSIM: {facts['ssim']:.4f}")
        typer.echo(f"Codes used at each depth: {facts['codes_used']}, perplexity: {_rounded(facts['perplexity'])}")


def _rounded(values: object) -> list[float]:
    assert isinstance(values, list)
    return [round(float(value), 1) for value in values]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
