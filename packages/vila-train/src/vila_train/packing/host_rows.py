"""Packed rows in main memory, on their way from a loading process to the GPU.

T tokens of a row, K media tokens, L labelled tokens, P positions that are to be drawn, N tiles of all media
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vila_core.model import PromptBatch
from vila_core.prompt import PreparedMedium
from vila_core.tiles import Normalization, TileLayout, Tiles
from vila_train.loss import Counts
from vila_train.packing.rows import PackedRow
from vila_train.samples import TrainingSample


@dataclass(frozen=True)
class MediumShape:
    """A medium without its pixels."""

    kind: str
    tiles: int
    layout: TileLayout
    normalization: Normalization | None


@dataclass(frozen=True)
class HostRow:
    """A packed row in two tensors: each one that a process hands over costs a file descriptor and a copy.

    Attributes:
        names: of the samples.
        lengths: of the samples, in tokens.
        integers: int64 `[2 T + K + 2 L + P]`: ids, labels, places, predicting, targets and drawing of the `PackedRow`.
        sizes: of these six.
        media: in order.
        drawn: of each medium, whether it is to be drawn; empty if none is.
        pixels: `[N, 3, H, W]` of all media; None without media.
        truncated: how many samples lost their end.
    """

    names: Sequence[str]
    lengths: Sequence[int]
    integers: Tensor
    sizes: Sequence[int]
    media: Sequence[MediumShape]
    drawn: Sequence[bool]
    pixels: Tensor | None
    truncated: int = 0

    @classmethod
    def of(cls, samples: Sequence[TrainingSample]) -> "HostRow":
        """Return `samples` as a row."""
        row = PackedRow.of(samples, torch.device("cpu"))
        drawing = row.targets[:0] if row.drawing is None else row.drawing
        integers = [row.batch.ids, row.labels, row.batch.places, row.predicting, row.targets, drawing]
        tiles = [medium.tiles for medium in row.batch.media]
        media = [
            MediumShape(medium.kind, len(medium.tiles), medium.tiles.layout, medium.tiles.normalization)
            for medium in row.batch.media
        ]
        pixels = torch.cat([of_medium.values for of_medium in tiles]) if tiles else None
        sizes = [len(of_kind) for of_kind in integers]
        truncated = sum(sample.truncated for sample in samples)
        return cls(row.names, row.batch.lengths, torch.cat(integers), sizes, media, row.drawn, pixels, truncated)

    @property
    def num_tokens(self) -> int:
        """T."""
        return sum(self.lengths)

    @property
    def counts(self) -> Counts:
        """How many targets it has: L and P."""
        return Counts(*self.sizes[-2:])

    def pin_memory(self) -> "HostRow":
        """Return the row in pinned memory, from which a GPU reads without waiting. PyTorch's data loader calls this."""
        pixels = None if self.pixels is None else self.pixels.pin_memory()
        return replace(self, integers=self.integers.pin_memory(), pixels=pixels)

    def to(self, device: torch.device) -> PackedRow:
        """Return the row on `device`."""
        integers = self.integers.to(device, non_blocking=True)
        ids, labels, places, predicting, targets, drawing = integers.split(list(self.sizes))
        media: list[PreparedMedium] = []
        if self.pixels is not None:
            parts = self.pixels.to(device, non_blocking=True).split([shape.tiles for shape in self.media])
            for shape, part in zip(self.media, parts, strict=True):
                media.append(PreparedMedium(shape.kind, Tiles(part, shape.layout, shape.normalization)))
        batch = PromptBatch(ids, places, media, self.lengths)
        drawing = drawing if len(drawing) else None
        return PackedRow(batch, labels, self.names, predicting, targets, drawing, self.drawn)
