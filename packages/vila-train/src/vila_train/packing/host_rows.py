"""Packed rows in main memory, on their way from a loading process to the GPU.

T tokens of a row, K media tokens, L labelled tokens, N tiles of all media
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vila_core.model import PromptBatch
from vila_core.prompt import PreparedMedium
from vila_core.tiles import Normalization, TileLayout, Tiles
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
        integers: int64 `[2 T + K + 2 L]`: ids, labels, places, predicting and targets of the `PackedRow`.
        sizes: of these five.
        media: in order.
        pixels: `[N, 3, H, W]` of all media; None without media.
    """

    names: Sequence[str]
    lengths: Sequence[int]
    integers: Tensor
    sizes: Sequence[int]
    media: Sequence[MediumShape]
    pixels: Tensor | None

    @classmethod
    def of(cls, samples: Sequence[TrainingSample]) -> "HostRow":
        """Return `samples` as a row."""
        row = PackedRow.of(samples, torch.device("cpu"))
        integers = [row.batch.ids, row.labels, row.batch.places, row.predicting, row.targets]
        tiles = [medium.tiles for medium in row.batch.media]
        media = [
            MediumShape(medium.kind, len(medium.tiles), medium.tiles.layout, medium.tiles.normalization)
            for medium in row.batch.media
        ]
        pixels = torch.cat([of_medium.values for of_medium in tiles]) if tiles else None
        return cls(row.names, row.batch.lengths, torch.cat(integers), [len(x) for x in integers], media, pixels)

    @property
    def num_tokens(self) -> int:
        """T."""
        return sum(self.lengths)

    @property
    def num_labels(self) -> int:
        """L."""
        return self.sizes[-1]

    def pin_memory(self) -> "HostRow":
        """Return the row in pinned memory, from which a GPU reads without waiting. PyTorch's data loader calls this."""
        pixels = None if self.pixels is None else self.pixels.pin_memory()
        return replace(self, integers=self.integers.pin_memory(), pixels=pixels)

    def to(self, device: torch.device) -> PackedRow:
        """Return the row on `device`."""
        integers = self.integers.to(device, non_blocking=True)
        ids, labels, places, predicting, targets = integers.split(list(self.sizes))
        media: list[PreparedMedium] = []
        if self.pixels is not None:
            parts = self.pixels.to(device, non_blocking=True).split([shape.tiles for shape in self.media])
            for shape, part in zip(self.media, parts, strict=True):
                media.append(PreparedMedium(shape.kind, Tiles(part, shape.layout, shape.normalization)))
        return PackedRow(PromptBatch(ids, places, media, self.lengths), labels, self.names, predicting, targets)
