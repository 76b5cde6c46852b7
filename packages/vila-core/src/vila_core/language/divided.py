"""Decoders whose weights lie on several devices: what a split by layers and tensor parallelism have in common.

B batch, T new tokens, D width, V vocabulary
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vila_core.config import DecoderConfig
from vila_core.language.cache import Cache, KVCache, SlotCache
from vila_core.language.decoder import Decoder
from vila_core.language.page_size import PAGE_SIZE
from vila_core.language.paged_cache import PagedCache


@dataclass(frozen=True)
class Part:
    """The part of a decoder on one device.

    Attributes:
        config: of a decoder with only these layers, or only these heads.
        device: where they are.
        dtype: of the keys and values.
    """

    config: DecoderConfig
    device: torch.device
    dtype: torch.dtype

    def new_cache(self, batch_size: int, max_length: int) -> KVCache:
        """Return an empty cache for the part."""
        return KVCache.allocate(self.config, batch_size, max_length, device=self.device, dtype=self.dtype)

    def new_pages(self, num_pages: int, *, in_8_bits: bool) -> PagedCache:
        """Return empty pages for the part."""
        return PagedCache.allocate(
            self.config,
            num_pages,
            page_size=PAGE_SIZE,
            device=self.device,
            dtype=self.dtype,
            in_8_bits=in_8_bits,
        )


@dataclass(frozen=True)
class DividedCache:
    """The cache of a `DividedDecoder`: one for each part, on its device."""

    parts: tuple[SlotCache, ...]

    def up_to(self, num_slots: int) -> DividedCache:
        """Return the cache for a call in which the longest row then has `num_slots` tokens. Memory is shared."""
        return DividedCache(tuple(part.up_to(num_slots) for part in self.parts))


@dataclass(frozen=True)
class DividedPages:
    """The pages of a `DividedDecoder`. A page has the same number on every device."""

    parts: tuple[PagedCache, ...]

    @property
    def num_pages(self) -> int:
        return self.parts[0].num_pages

    @property
    def page_size(self) -> int:
        return self.parts[0].page_size

    def copy_page(self, source: int, target: int) -> None:
        """See `PagedCache.copy_page`."""
        for part in self.parts:
            part.copy_page(source, target)

    def rows(self, table: Tensor) -> DividedCache:
        """See `PagedCache.rows`."""
        return DividedCache(tuple(part.rows(table.to(part.keys.device)) for part in self.parts))


class DividedDecoder(nn.Module, ABC):
    """A `LanguageModel` that runs the blocks of a loaded `Decoder` on several devices.

    Embedding, final norm and head are on the first device, and so are all inputs and results.

    Args:
        decoder: embedding, norm and head.
        parts: what each device holds.
    """

    def __init__(self, decoder: Decoder, parts: tuple[Part, ...]):
        super().__init__()
        self.decoder = decoder
        self.parts = parts

    @property
    def config(self) -> DecoderConfig:
        return self.decoder.config

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids `[B, T]` -> embeddings `[B, T, D]`."""
        return self.decoder.embed(ids)

    @abstractmethod
    def forward(
        self,
        embeds: Tensor,
        *,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Embeddings `[B, T, D]` -> hidden states after the final norm `[B, T, D]`."""

    @property
    def has_own_step(self) -> bool:
        """See `Decoder`: none of the parts has."""
        return False

    def decode_step(self, embeds: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """One new token of each row, `[B, 1, D]` -> hidden states `[B, 1, D]`."""
        return self(embeds, positions=positions, cache=cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states `[..., D]` -> scores `[..., V]`."""
        return self.decoder.logits(hidden)

    def new_cache(self, batch_size: int, max_length: int) -> DividedCache:
        """Return an empty cache on the devices of the parts."""
        return DividedCache(tuple(part.new_cache(batch_size, max_length) for part in self.parts))

    def caches(self, cache: Cache | None) -> list[SlotCache] | list[None]:
        """Return the cache of each part."""
        if cache is None:
            return [None] * len(self.parts)
        assert isinstance(cache, DividedCache), "the decoder fills caches of its own new_cache"
        return list(cache.parts)


NativeDecoder = Decoder | DividedDecoder
"""Decoders of this package, which run over a paged cache."""


def embedding(decoder: NativeDecoder) -> Tensor:
    """Return the embedding `[V, D]`: it has the decoder's dtype, on the device of inputs and results."""
    whole = decoder.decoder if isinstance(decoder, DividedDecoder) else decoder
    return whole.model.embed_tokens.weight


def parts_of(decoder: NativeDecoder) -> tuple[Part, ...]:
    """Return what each device holds; a decoder on one device is one part."""
    if isinstance(decoder, DividedDecoder):
        return decoder.parts
    weight = embedding(decoder)
    return (Part(decoder.config, weight.device, weight.dtype),)


def new_pages(decoder: NativeDecoder, num_pages: int, *, in_8_bits: bool = False) -> PagedCache | DividedPages:
    """Return empty pages of `PAGE_SIZE` slots on all devices of `decoder`."""
    pages = tuple(part.new_pages(num_pages, in_8_bits=in_8_bits) for part in parts_of(decoder))
    return DividedPages(pages) if isinstance(decoder, DividedDecoder) else pages[0]


def current(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the current one: Triton launches kernels there, wherever their tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
