"""`vila convert`: write a checkpoint in another format, with a progress bar."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vila_core.cli.options import LoraPath, Offline, Revision
from vila_core.cli.progress import BYTES, open_progress
from vila_core.errors import CheckpointError, shown

if TYPE_CHECKING:
    import torch

    from vila_core.checkpoint import TensorEntry, Weights

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}

MaxShard = Annotated[
    str | None, typer.Option("--max-shard", metavar="SIZE", help="Largest file, such as 5GB or 500MB.")
]


def convert_checkpoint(
    source: Annotated[str, typer.Argument(metavar="IN", help="Folder or hub id, in any readable format.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    format: Annotated[str, typer.Option("--format", "-f", metavar="NAME", help="vila, nvila, or a plugin's format.")],
    lora: LoraPath = None,
    revision: Revision = None,
    offline: Offline = False,
    max_shard: MaxShard = None,
) -> None:
    """Write a checkpoint in another format. Tensors are copied unchanged; OUT is written completely or not at all.

    [bold]Example:[/bold] vila convert Efficient-Large-Model/NVILA-Lite-2B nvila-lite --format nvila
    """
    from vila_core.checkpoint import convert, open_checkpoint
    from vila_core.checkpoint.conversion import describe_conversion, is_converted

    limit = None if max_shard is None else read_size(max_shard)
    checkpoint = open_checkpoint(source, revision=revision, offline=offline)
    if is_converted(out.expanduser(), describe_conversion(checkpoint, lora, format, limit)):
        typer.echo(f"{out} is already complete: the result of this conversion. Nothing was written.")
        return
    with open_progress(BYTES, lines=False) as progress:
        progress.start("Converting", sum(entry.nbytes for entry in checkpoint.weights.entries.values()))
        counted = replace(checkpoint, weights=CountedWeights(checkpoint.weights, progress.advance))
        written = convert(counted, out, format, lora=lora, offline=offline, max_shard_bytes=limit)
    typer.echo(f"Wrote {written.path} ({written.format}).")


def read_size(text: str) -> int:
    """Return the bytes that a `--max-shard` names. Raises `CheckpointError` for anything else."""
    for unit, factor in UNITS.items():
        number = text.upper().removesuffix(unit)
        if number != text.upper() and number.strip().isdecimal() and len(number) < 20:
            return int(number) * factor
    raise CheckpointError(f"--max-shard {shown(text)} is not a size. Write a whole number and a unit: 500MB, 5GB.")


@dataclass(frozen=True)
class CountedWeights:
    """Weights that report how many of their bytes have been read."""

    weights: "Weights"
    advance: Callable[[int], None]

    @property
    def entries(self) -> "Mapping[str, TensorEntry]":
        return self.weights.entries

    def shards(self, device: "torch.device | str" = "cpu") -> "Iterator[tuple[str, torch.Tensor]]":
        """Yield (name, tensor on `device`)."""
        for name, tensor in self.weights.shards(device):
            yield name, tensor
            self.advance(self.entries[name].nbytes)

    def stream(self) -> Iterator[tuple[str, Iterator[bytes | memoryview]]]:
        """Yield (name, its bytes in chunks)."""
        for name, chunks in self.weights.stream():
            yield name, self._counted(chunks)

    def _counted(self, chunks: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        for chunk in chunks:
            yield chunk
            self.advance(memoryview(chunk).nbytes)
