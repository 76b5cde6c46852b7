"""The decode step of a decoder with 4-bit linears: on a CPU, one compiled call reads a new token."""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vila_core.language.cache import KVCache
from vila_core.language.paged_cache import PagedRows

if TYPE_CHECKING:
    from vila_core.language.cache import Cache
    from vila_core.language.decoder import Decoder
    from vila_quant.linears.compiled_decoder import CompiledDecoder, Pages

DTYPES = (torch.bfloat16, torch.float32)
"""Cache dtypes that the compiled code reads."""


class CompiledDecodeStep:
    """Reads one new token of each row in one compiled call.

    The decoder's own forward runs where the compiled code does not apply: a sliding window that is full, another dtype,
    linears of other kernels, or no numba.

    Args:
        decoder: the decoder that this step is for.
    """

    def __init__(self, decoder: Decoder):
        self._decoder = decoder

    def __call__(self, embeds: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """`[B, 1, D]` -> hidden states after the final norm, `[B, 1, D]`."""
        pages = self._pages(embeds, positions, cache)
        if pages is None or self.compiled is None:
            return self._decoder(embeds, positions=positions, cache=cache)
        return self.compiled(embeds, self._decoder.model.rotary(positions, torch.float32), pages)

    def _pages(self, embeds: Tensor, positions: Tensor, cache: Cache) -> Pages | None:
        """Return the cache as the compiled code reads it; None if that does not apply."""
        from vila_quant.linears.compiled_decoder import Pages

        if embeds.dtype not in DTYPES:
            return None
        lengths = positions[:, 0].expand(len(embeds)) + 1
        window = self._decoder.config.sliding_window
        if window is not None and window < int(lengths.max()):
            return None
        if isinstance(cache, KVCache):  # each row is one large page
            return Pages(cache.keys, cache.values, torch.arange(len(embeds))[:, None], lengths.contiguous())
        if isinstance(cache, PagedRows):
            if cache.cache.scales is not None:
                warnings.warn(
                    "The compiled decode step does not read a KV cache in 8 bits: decoding takes the slower path. "
                    "Leave kv_cache_dtype at 'auto' on a CPU.",
                    stacklevel=2,
                )
                return None
            return Pages(cache.cache.keys, cache.cache.values, cache.table.long(), lengths.contiguous())
        return None

    @cached_property
    def compiled(self) -> CompiledDecoder | None:
        """The compiled decoder; None if it does not fit this one. Made at first use: linears choose kernels at load."""
        try:
            from vila_quant.linears.compiled_decoder import CompiledDecoder
        except ImportError:
            return None
        return CompiledDecoder.of(self._decoder.model)
