"""Rendered samples on the training device, and batches taken from them.

Dimensions: n samples of a source, B batch, M pictures per sample, K tokens per picture, T tokens.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vila_train.labels import IGNORE_INDEX
from vila_train.tiny.data import Shard
from vila_train.tiny.forward import Batch


class Pool:
    """All samples of one source, on one device."""

    def __init__(self, shards: Iterable[Shard], device: torch.device | str):
        pixels: list[Tensor] = []
        tokens: list[tuple[Tensor, Tensor, Tensor]] = []
        for shard in shards:
            pixels.append(torch.from_numpy(shard.pixels).to(device))
            tokens.append((torch.from_numpy(shard.ids), torch.from_numpy(shard.places), torch.from_numpy(shard.labels)))
        ids, places, labels = zip(*tokens, strict=True)
        self.pixels = torch.cat(pixels)
        self.ids = _join(ids, 0).to(device)
        self.places = torch.cat(places).to(device)
        self.labels = _join(labels, IGNORE_INDEX).to(device)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Tensor) -> Batch:
        """Return the samples at `indices` `[B]`."""
        return Batch(
            self.pixels[indices], self.ids[indices].long(), self.places[indices].long(), self.labels[indices].long()
        )

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield every sample once, in batches."""
        for indices in torch.arange(len(self), device=self.ids.device).split(batch_size):
            yield self.take(indices)


def join(batches: list[Batch]) -> Batch:
    """Concatenate batches whose samples have the same number of pictures."""
    return Batch(
        torch.cat([batch.pixels for batch in batches]),
        _join([batch.ids for batch in batches], 0),
        torch.cat([batch.places for batch in batches]),
        _join([batch.labels for batch in batches], IGNORE_INDEX),
    )


def _join(rows: Iterable[Tensor], value: int) -> Tensor:
    """Concatenate `[n_i, T_i]` to `[n, T]`, padding on the right with `value`."""
    rows = list(rows)
    width = max(row.shape[1] for row in rows)
    return torch.cat([F.pad(row, (0, width - row.shape[1]), value=value) for row in rows])
