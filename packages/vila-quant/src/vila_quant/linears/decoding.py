"""A decoder whose linears have four bits: on a CPU it reads a new token in one compiled call."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vila_core.language.decoder import DecoderModel

if TYPE_CHECKING:
    from vila_core.language.cache import KVCache
    from vila_quant.linears.compiled_decoder import CompiledDecoder

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
        self.embed_tokens, self.layers, self.norm, self.rotary = (
            model.embed_tokens,
            model.layers,
            model.norm,
            model.rotary,
        )

    def run(self, x: Tensor, positions: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        """`x [B, T, D]` -> hidden states after the final norm `[B, T, D]`."""
        if cache is None or mask is not None or x.shape[1] > 1 or x.dtype not in DTYPES or self._twin is None:
            return super().run(x, positions, mask, cache)
        return self._twin(x, self.rotary(positions, torch.float32), cache)

    @cached_property
    def _twin(self) -> CompiledDecoder | None:
        """Made when it is first asked for, since linears choose their kernel when they are loaded."""
        try:
            from vila_quant.linears.compiled_decoder import CompiledDecoder
        except ImportError:
            return None
        return CompiledDecoder.of(self)
