"""A decoder whose blocks lie on several devices: hidden states move from one to the next.

L layers, B batch, T new tokens, D width
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor

from vila_core.language.attention import AttentionFunction, AttentionInputs, attention_inputs
from vila_core.language.cache import Cache, SlotCache
from vila_core.language.decoder import Block, Decoder
from vila_core.language.divided import DividedDecoder, Part, current
from vila_core.language.rope import Rotary


class SplitDecoder(DividedDecoder):
    """A decoder that runs on several devices, one after the other.

    Args:
        decoder: its blocks lie on `devices`; the rest lies on the first device.
        devices: each with the number of its blocks, in order.
    """

    def __init__(self, decoder: Decoder, devices: Sequence[tuple[torch.device, int]]):
        firsts = list(accumulate((count for _, count in devices), initial=0))
        assert firsts[-1] == len(decoder.model.layers)
        self.segments = tuple(
            Segment(decoder, first, count, device) for first, (device, count) in zip(firsts, devices, strict=False)
        )
        super().__init__(decoder, tuple(segment.part for segment in self.segments))

    def forward(
        self,
        embeds: Tensor,
        *,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Embeddings `[B, T, D]` -> hidden states after the final norm `[B, T, D]`."""
        x = embeds
        for segment, part in zip(self.segments, self.caches(cache), strict=True):
            x = segment(x, positions, part, lengths)
        return self.decoder.model.norm(x.to(embeds.device))


class Segment:
    """Neighboring blocks of a decoder that lie on one device.

    Args:
        decoder: it holds the blocks.
        first: the number of the first block.
        count: how many blocks.
        device: where they are.
    """

    def __init__(self, decoder: Decoder, first: int, count: int, device: torch.device):
        config = decoder.config.model_copy(update={"num_hidden_layers": count})
        self.part = Part(config, device, decoder.model.embed_tokens.weight.dtype)
        self.blocks = [cast("Block", decoder.model.layers[number]) for number in range(first, first + count)]
        self.rotary = Rotary(config)  # its frequencies stay on this device
        self._attention: AttentionFunction = partial(_attend_in_segment, decoder.model.attention, first)

    def __call__(self, x: Tensor, positions: Tensor | None, cache: SlotCache | None, lengths: Tensor | None) -> Tensor:
        """`[B, T, D]` on any device -> `[B, T, D]` on this device."""
        device = self.part.device
        x = x.to(device)
        positions = None if positions is None else positions.to(device)
        inputs = attention_inputs(x.shape[1], positions, cache, self.part.config.sliding_window, device)
        assert inputs.positions is not None
        rotation = self.rotary(inputs.positions, x.dtype, None if lengths is None else lengths.to(device))
        with current(device):
            for block in self.blocks:
                x = block(x, rotation, inputs, self._attention)
        return x


def _attend_in_segment(
    attention: AttentionFunction, first: int, q: Tensor, k: Tensor, v: Tensor, inputs: AttentionInputs, layer: int
) -> Tensor:
    """Call `attention` with the number that `layer` has in the cache of a segment, which starts at layer `first`."""
    return attention(q, k, v, inputs, layer - first)
