"""Reading short prompts in CUDA graphs: launching a quantized model's kernels takes longer than they do.

T tokens, S slots of a graph, D width

A prompt is padded on the right to the next size that has a graph. Attention is causal, so padding changes nothing of
what comes before it, and its keys and values are not written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from vila_core.language.capturing import capture
from vila_core.language.divided import DividedDecoder, DividedPages, NativeDecoder, embedding
from vila_core.language.fused_step import step_refusal

if TYPE_CHECKING:
    from vila_core.language.decoder import Decoder
    from vila_core.language.paged_cache import PagedCache, PagedRows

SIZES = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Tokens of the graphs. Longer prompts take the GPU longer than launching takes the host."""


@dataclass(frozen=True)
class PaddedRows:
    """A row of a paged cache of which only the tokens up to `last` are written, for one prompt from its start.

    Attributes:
        rows: the one row.
        last: int64 `[1]`: the last token that is no padding.
    """

    rows: PagedRows
    last: Tensor
    limit: int | None = None

    @property
    def num_slots(self) -> int:
        return self.rows.num_slots

    def up_to(self, num_slots: int) -> Self:
        raise AssertionError("a prompt is read from its start, so the cache is not read")

    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write `[1, H_kv, T, D_h]`; instead of padding, the last token is written again, and returned."""
        token = torch.minimum(torch.arange(positions.shape[1], device=positions.device), self.last)
        return self.rows.write(layer, positions[:, token], keys[:, :, token], values[:, :, token])

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        raise AssertionError("a prompt is read from its start, so the cache is not read")


@dataclass(frozen=True)
class Graph:
    """A captured pass over S tokens and the hidden state of the last one, `[D]`."""

    graph: torch.cuda.CUDAGraph
    hidden: Tensor


class GraphPrefill:
    """Reads prompts of up to `SIZES[-1]` tokens from their start, on an NVIDIA GPU.

    Args:
        decoder: the language model; its weights stay where they are.
        cache: its pages.
        max_pages: how many pages a row may have.
    """

    def __init__(self, decoder: Decoder, cache: PagedCache, max_pages: int):
        device = decoder.model.embed_tokens.weight.device
        longest = min(SIZES[-1], max_pages * cache.page_size)
        self._decoder = decoder
        self._modules = list(decoder.modules())
        self._cache = cache
        self._sizes = [size for size in SIZES if size < longest] + [longest]
        self._embeds = torch.zeros(1, longest, decoder.config.hidden_size, device=device, dtype=cache.dtype)
        self._table = torch.zeros(1, max_pages, dtype=torch.int64, device=device)
        self._last = torch.zeros(1, dtype=torch.int64, device=device)
        self._seen: set[int] = set()
        self._graphs: dict[int, Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def takes(self, embeds: Tensor) -> bool:
        """Return whether a prompt `[T, D]` can be read in a graph, which would not call hooks."""
        watched = (module._forward_hooks or module._forward_pre_hooks for module in self._modules)  # pyright: ignore[reportPrivateUsage]
        return 0 < len(embeds) <= self._sizes[-1] and embeds.dtype == self._embeds.dtype and not any(watched)

    @torch.inference_mode()
    def __call__(self, embeds: Tensor, pages: Sequence[int]) -> Tensor:
        """Read a prompt `[T, D]` into `pages` -> the hidden state of its last token, `[D]`."""
        count = len(embeds)
        size = next(size for size in self._sizes if size >= count)
        self._embeds[0, :count] = embeds
        self._embeds[0, count:size] = 0  # NaN would spread: a weight of 0 times NaN is NaN
        self._table[0, : len(pages)] = torch.tensor(pages, device=embeds.device)
        self._last.fill_(count - 1)
        if size not in self._seen:
            self._seen.add(size)
            return self._read(size)  # a size that comes only once is not worth a capture
        if size not in self._graphs:
            self._graphs[size] = self._capture(size)
        graph = self._graphs[size]
        graph.graph.replay()
        return graph.hidden.clone()

    def _capture(self, size: int) -> Graph:
        return Graph(*capture(lambda: self._read(size), self._last.device, self._pool))

    def _read(self, size: int) -> Tensor:
        cache = PaddedRows(self._cache.rows(self._table), self._last)
        return self._decoder(self._embeds[:, :size], cache=cache)[0].index_select(0, self._last)[0]


def prefill_graphs(decoder: NativeDecoder, cache: PagedCache | DividedPages, max_pages: int) -> GraphPrefill | None:
    """Return graphs for short prompts; None on several devices, and where a step is not captured either."""
    if isinstance(decoder, DividedDecoder) or isinstance(cache, DividedPages):
        return None
    weight = embedding(decoder)
    if step_refusal(decoder.config, weight.device, weight.dtype) is not None:
        return None
    return GraphPrefill(decoder, cache, max_pages)
