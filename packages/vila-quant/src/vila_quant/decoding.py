"""A decoder whose linears have four bits: on a CPU it reads a new token in one compiled call."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vila_core.language.decoder import DecoderModel, visibility

if TYPE_CHECKING:
    from vila_core.engine.cache import KVCache
    from vila_quant.kernels.compiled.decoder import CompiledDecoder

DTYPES = (torch.bfloat16, torch.float32)
"""Of caches that compiled code reads."""


class DecodingModel(DecoderModel):
    """Embedding, blocks and final norm, with a compiled twin that reads one new token of each row; all else is the decoder's own way.

    Args:
        model: its modules are taken over, under their names.
    """

    def __init__(self, model: DecoderModel):
        nn.Module.__init__(self)
        self.config = model.config
        self.embed_tokens, self.layers, self.norm, self.rotary = model.embed_tokens, model.layers, model.norm, model.rotary

    def forward(self, x: Tensor, positions: Tensor | None, cache: KVCache | None, attention_mask: Tensor | None) -> Tensor:
        """`x [B, T, D]` -> hidden states after the final norm `[B, T, D]`."""
        if cache is None or x.shape[1] > 1 or x.dtype not in DTYPES or self._twin is None:
            return super().forward(x, positions, cache, attention_mask)
        if visibility(1, cache.length + 1, attention_mask, self.config.sliding_window, x.device) is not None:
            return super().forward(x, positions, cache, attention_mask)
        if positions is None:
            positions = torch.tensor([[cache.length]])
        y = self._twin(x, self.rotary(positions, torch.float32), cache)
        cache.advance(1)
        return y

    @cached_property
    def _twin(self) -> CompiledDecoder | None:
        """Made when it is first asked for, since linears choose their kernel when they are loaded."""
        try:
            from vila_quant.kernels.compiled.decoder import CompiledDecoder
        except ImportError:
            return None
        return CompiledDecoder.of(self)
