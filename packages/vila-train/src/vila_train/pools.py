"""Rendered samples on the device, and the batches drawn from them.

n samples of a source, B of a batch, M pictures, T tokens.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from vila_core.labels import IGNORE_INDEX
from vila_train.data import TEXT, Shard
from vila_train.forward import Batch


class Pool:
    """All samples of one source, on one device."""

    def __init__(self, shards: Iterable[Shard], device: torch.device | str):
        pixels: list[Tensor] = []
        tokens: list[tuple[Tensor, Tensor, Tensor]] = []
        for shard in shards:
            pixels.append(torch.from_numpy(shard.pixels).to(device))
            tokens.append((torch.from_numpy(shard.ids), torch.from_numpy(shard.slots), torch.from_numpy(shard.labels)))
        self.pixels = torch.cat(pixels)
        ids, slots, labels = zip(*tokens, strict=True)
        self.ids, self.slots, self.labels = (
            _join(rows, value).to(device) for rows, value in ((ids, 0), (slots, TEXT), (labels, IGNORE_INDEX))
        )

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Tensor) -> Batch:
        """Return the samples at `indices` `[B]`."""
        return Batch(self.pixels[indices], self.ids[indices].long(), self.slots[indices].long(), self.labels[indices].long())

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Return `count` samples at random."""
        return self.take(torch.randint(len(self), (count,), device=self.ids.device, generator=generator))

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield every sample once."""
        for indices in torch.arange(len(self), device=self.ids.device).split(batch_size):
            yield self.take(indices)


def draw(pools: Mapping[str, Pool], counts: Mapping[str, int], generator: torch.Generator) -> Batch:
    """Return a batch of so many samples of each source, which have equally many pictures."""
    return join([pools[source].draw(count, generator) for source, count in counts.items()])


def join(batches: list[Batch]) -> Batch:
    """Return the samples of all batches as one."""
    return Batch(
        torch.cat([batch.pixels for batch in batches]),
        _join([batch.ids for batch in batches], 0),
        _join([batch.slots for batch in batches], TEXT),
        _join([batch.labels for batch in batches], IGNORE_INDEX),
    )


def _join(rows: Iterable[Tensor], value: int) -> Tensor:
    """Stack `[n_i, T_i]` to `[n, T]`, padding at the right with `value`."""
    rows = list(rows)
    width = max(row.shape[1] for row in rows)
    return torch.cat([F.pad(row, (0, width - row.shape[1]), value=value) for row in rows])
