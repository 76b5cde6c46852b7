"""A decoder whose blocks lie on several devices: hidden states move from one to the next.

L layers, B batch, T new tokens, D width, V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import nn

from vila_core.config import DecoderConfig
from vila_core.language.attention import AttentionFunction, AttentionInputs, attention_inputs
from vila_core.language.cache import Cache, KVCache
from vila_core.language.decoder import Decoder
from vila_core.language.rope import Rotary


@dataclass(frozen=True)
class SplitCache:
    """The cache of a `SplitDecoder`: one `KVCache` on each device, of the layers that lie there."""

    parts: tuple[KVCache, ...]

    def up_to(self, num_slots: int) -> SplitCache:
        """Return the cache for a call in which the longest row then has `num_slots` tokens. Memory is shared."""
        return SplitCache(tuple(part.up_to(num_slots) for part in self.parts))


class SplitDecoder(nn.Module):
    """A `LanguageModel` that runs a loaded `Decoder` on several devices, one after the other.

    Embedding, final norm and head are on the first device, and so are all inputs and results. The step is not captured
    in a CUDA graph: kernels are launched one by one, which costs little while each of them reads many bytes.

    Args:
        decoder: its blocks lie on `devices`; the rest lies on the first device.
        devices: each with the number of its blocks, in order.
    """

    def __init__(self, decoder: Decoder, devices: Sequence[tuple[torch.device, int]]):
        super().__init__()
        self.decoder = decoder
        firsts = list(accumulate((count for _, count in devices), initial=0))
        assert firsts[-1] == len(decoder.model.layers)
        self._segments = tuple(
            Segment(decoder, first, count, device) for first, (device, count) in zip(firsts, devices, strict=False)
        )

    @property
    def config(self) -> DecoderConfig:
        return self.decoder.config

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids `[B, T]` -> embeddings `[B, T, D]`."""
        return self.decoder.embed(ids)

    def forward(
        self,
        embeds: torch.Tensor,
        *,
        positions: torch.Tensor | None = None,
        cache: Cache | None = None,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings `[B, T, D]` -> hidden states after the final norm `[B, T, D]`."""
        assert cache is None or isinstance(cache, SplitCache), "the decoder fills caches of its own new_cache"
        parts = [None] * len(self._segments) if cache is None else cache.parts
        x = embeds
        for segment, part in zip(self._segments, parts, strict=True):
            x = segment(x, positions, part, lengths)
        return self.decoder.model.norm(x.to(embeds.device))

    def decode_step(self, embeds: torch.Tensor, positions: torch.Tensor, cache: Cache) -> torch.Tensor:
        """One new token of each row, `[B, 1, D]` -> hidden states `[B, 1, D]`."""
        return self(embeds, positions=positions, cache=cache)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states `[..., D]` -> scores `[..., V]`."""
        return self.decoder.logits(hidden)

    def new_cache(self, batch_size: int, max_length: int) -> SplitCache:
        """Return an empty cache, on the devices of the layers."""
        return SplitCache(tuple(segment.new_cache(batch_size, max_length) for segment in self._segments))


class Segment:
    """Neighboring blocks of a decoder that lie on one device.

    Args:
        decoder: it holds the blocks.
        first: the number of the first block.
        count: how many blocks.
        device: where they are.
    """

    def __init__(self, decoder: Decoder, first: int, count: int, device: torch.device):
        self._config = decoder.config
        self._dtype = decoder.model.embed_tokens.weight.dtype
        self._layers = [decoder.model.layers[number] for number in range(first, first + count)]
        self._attention: AttentionFunction = partial(_attend_in_segment, decoder.model.attention, first)
        self._rotary = Rotary(decoder.config)  # its frequencies stay on this device
        self._device = device

    def __call__(
        self, x: torch.Tensor, positions: torch.Tensor | None, cache: KVCache | None, lengths: torch.Tensor | None
    ) -> torch.Tensor:
        """`[B, T, D]` on any device -> `[B, T, D]` on this device."""
        device = self._device
        x = x.to(device)
        positions = None if positions is None else positions.to(device)
        inputs = attention_inputs(x.shape[1], positions, cache, self._config.sliding_window, device)
        assert inputs.positions is not None
        rotation = self._rotary(inputs.positions, x.dtype, None if lengths is None else lengths.to(device))
        for layer in self._layers:
            x = layer(x, rotation, inputs, self._attention)
        return x

    def new_cache(self, batch_size: int, max_length: int) -> KVCache:
        """Return an empty cache for the layers of the segment."""
        config = self._config
        return KVCache.allocate(
            len(self._layers),
            batch_size,
            config.num_key_value_heads,
            max_length,
            config.head_dim,
            device=self._device,
            dtype=self._dtype,
        )


def _attend_in_segment(
    attention: AttentionFunction,
    first: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    inputs: AttentionInputs,
    layer: int,
) -> torch.Tensor:
    """Call `attention` with the number that `layer` has in the cache of a segment, which starts at layer `first`."""
    return attention(q, k, v, inputs, layer - first)
