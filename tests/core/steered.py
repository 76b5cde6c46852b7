"""A language model whose logits a test may change."""

from collections.abc import Callable, Sequence

import torch

from vila_core.language.cache import Cache
from vila_core.language.decoder import Decoder

Steer = Callable[[torch.Tensor, Sequence[Sequence[int]]], torch.Tensor]
"""`(logits [B, V], ids generated so far in each row) -> logits`."""


class SteeredDecoder:
    """`decoder` with `steer` applied to its logits, for one call of `generate` or `stream`."""

    def __init__(self, decoder: Decoder, steer: Steer):
        self.config = decoder.config
        self._decoder = decoder
        self._steer = steer
        self._history: list[list[int]] = []

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        for row, token_id in zip(self._history, ids[:, 0].tolist(), strict=True):
            row.append(token_id)
        return self._decoder.embed(ids)

    def __call__(self, embeds: torch.Tensor, **arguments: torch.Tensor | Cache | None) -> torch.Tensor:
        self._history = [[] for _ in embeds]
        return self._decoder(embeds, **arguments)

    def decode_step(self, embeds: torch.Tensor, positions: torch.Tensor, cache: Cache) -> torch.Tensor:
        return self._decoder.decode_step(embeds, positions, cache)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._steer(self._decoder.logits(hidden).float(), self._history)

    def new_cache(self, batch_size: int, max_length: int) -> Cache:
        return self._decoder.new_cache(batch_size, max_length)
