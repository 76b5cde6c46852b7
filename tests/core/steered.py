"""A language model whose logits a test may change."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch

from vila_core.language.cache import Cache
from vila_core.language.decoder import Decoder

Steer = Callable[[torch.Tensor, Sequence[int], int], torch.Tensor]
"""`(logits [V], ids of the answer so far, number of the prompt) -> logits`."""


@dataclass(frozen=True)
class SteeredCache:
    """The cache of a prompt, with the ids of its answer so far."""

    inner: Cache
    number: int
    history: list[int] = field(default_factory=list[int])

    def up_to(self, num_slots: int) -> Self:
        return replace(self, inner=self.inner.up_to(num_slots))


class SteeredDecoder(torch.nn.Module):
    """`decoder` with `steer` applied to its logits. Prompts are numbered as they are read.

    Hidden states carry the number of their prompt in an extra column.
    """

    def __init__(self, decoder: Decoder, steer: Steer):
        super().__init__()
        self.config = decoder.config
        self._decoder = decoder
        self._steer = steer
        self._caches: list[SteeredCache] = []

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self._decoder.embed(ids)

    def forward(self, embeds: torch.Tensor, *, cache: SteeredCache, **arguments: torch.Tensor | None) -> torch.Tensor:
        hidden = self._decoder(embeds, cache=cache.inner, **arguments)
        return torch.cat((hidden, torch.full_like(hidden[..., :1], cache.number)), dim=-1)

    def decode_step(self, embeds: torch.Tensor, positions: torch.Tensor, cache: SteeredCache) -> torch.Tensor:
        same = (self._decoder.model.embed_tokens.weight == embeds[0, 0]).all(dim=-1)
        cache.history.append(int(same.nonzero()[0, 0]))
        return self(embeds, positions=positions, cache=cache)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        caches = [self._caches[int(number)] for number in hidden[:, -1]]
        rows = zip(self._decoder.logits(hidden[:, :-1]).float(), caches, strict=True)
        return torch.stack([self._steer(row, cache.history, cache.number) for row, cache in rows])

    def new_cache(self, batch_size: int, max_length: int) -> SteeredCache:
        self._caches.append(SteeredCache(self._decoder.new_cache(batch_size, max_length), len(self._caches)))
        return self._caches[-1]
