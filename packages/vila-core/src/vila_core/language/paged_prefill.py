"""Reading prompts in CUDA graphs: launching the kernels of a short chunk takes longer than they do.

N tokens of a graph, n prompts, T_i new tokens of a prompt, D width, P slots of a page

A graph reads the next tokens of one or several prompts, from their beginnings or in their middles, one after the other
as one sequence. Which tokens are whose is in tensors, so there is a graph for each number of tokens in `SIZES`, padded
at the end, for one or for up to `MAX_PROMPTS` prompts, that are short or long: 56 at most, captured when they come for
the second time. They share the memory of their activations, which is that of the largest.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vila_core.language.capturing import capture
from vila_core.language.divided import DividedDecoder, DividedPages, NativeDecoder
from vila_core.language.paged_step import PagedStep, TorchStep
from vila_core.uploads import upload

if TYPE_CHECKING:
    from vila_core.language.decoder import Decoder
    from vila_core.language.fused_step import FusedStep
    from vila_core.language.paged_cache import PagedCache

SIZES = (16, 32, 64, 96, 128, 160, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Tokens of the graphs. More tokens take the GPU longer than launching takes the host."""
MAX_PROMPTS = 32
LONG_CONTEXT = 4096
"""A chunk of more than `SHORT_CHUNK` tokens that attends to more than this is left to flash attention."""
SHORT_CHUNK = 256
SHORT_CONTEXT = 1024


@dataclass(frozen=True)
class NextTokens:
    """The tokens of a prompt that are read next.

    Attributes:
        embeds: `[T_i, D]`.
        start: the position of the first.
        pages: of the prompt, in order; they have room for all.
    """

    embeds: Tensor
    start: int
    pages: Sequence[int]


@dataclass(frozen=True)
class Kind:
    """What a graph is for.

    Attributes:
        size: N.
        prompts: at most so many.
        long: whether a token may see more than `SHORT_CONTEXT` others.
    """

    size: int
    prompts: int
    long: bool

    @classmethod
    def of(cls, prompts: Sequence[NextTokens]) -> Kind:
        """Return the smallest kind that reads these prompts."""
        tokens = sum(len(prompt.embeds) for prompt in prompts)
        return cls(
            next(size for size in SIZES if size >= tokens),
            1 if len(prompts) == 1 else MAX_PROMPTS,
            max(prompt.start + len(prompt.embeds) for prompt in prompts) > SHORT_CONTEXT,
        )


@dataclass(frozen=True)
class Packed:
    """Prompts as the kernels find them (see `ops.ragged_attention.RaggedTokens`), as lists.

    Attributes:
        positions, slots: of N tokens.
        blocks: four numbers for each query block.
        last: for each prompt, which of the N tokens is its last one.
    """

    positions: list[int]
    slots: list[int]
    blocks: list[int]
    last: list[int]


def pack(prompts: Sequence[tuple[int, int, Sequence[int]]], size: int, *, page: int, block: int) -> Packed:
    """Lay out prompts one after the other.

    Args:
        prompts: of each, the position of its first new token, how many there are, and its pages.
        size: N.
        page: P.
        block: tokens of a query block.
    """
    positions: list[int] = []
    slots: list[int] = []
    blocks: list[int] = []
    for row, (start, count, pages) in enumerate(prompts):
        for first in range(0, count, block):
            blocks += (len(positions) + first, min(block, count - first), start + first, row)
        positions += range(start, start + count)
        slots += [pages[position // page] * page + position % page for position in range(start, start + count)]
    padding = [-1] * (size - len(positions))
    last = [end - 1 for end in accumulate(count for _, count, _ in prompts)]
    return Packed(positions + padding, slots + padding, blocks, last)


@dataclass(frozen=True)
class Graph:
    """A captured pass and the hidden states of last tokens, `[prompts, D]`."""

    graph: torch.cuda.CUDAGraph
    hidden: Tensor


class GraphPrefill:
    """Reads up to `SIZES[-1]` tokens at a time, on an NVIDIA GPU.

    Args:
        decoder: the language model; its weights stay where they are.
        cache: its pages.
        max_pages: how many pages a row may have.
        fused: the decoder's layers.
    """

    def __init__(self, decoder: Decoder, cache: PagedCache, max_pages: int, fused: FusedStep):
        from vila_core.ops.ragged_attention import RaggedTokens, block_tokens  # needs Triton

        device, config = decoder.model.embed_tokens.weight.device, decoder.config
        self._modules = list(decoder.modules())
        self._fused = fused
        self._cache = cache
        group = config.num_attention_heads // config.num_key_value_heads
        self._block_tokens = {
            (size, long): block_tokens(size, group, long=long) for size in SIZES for long in (False, True)
        }
        most_blocks = max(-(-size // tokens) for (size, _), tokens in self._block_tokens.items()) + MAX_PROMPTS
        with torch.inference_mode(False):
            self._embeds = torch.zeros(SIZES[-1], config.hidden_size, device=device, dtype=cache.dtype)
            self._new = RaggedTokens(
                torch.full((SIZES[-1],), -1, device=device),
                torch.full((SIZES[-1],), -1, device=device),
                torch.zeros(most_blocks, 4, dtype=torch.int32, device=device),
                torch.zeros(MAX_PROMPTS, max_pages, dtype=torch.int32, device=device),
            )
            self._last = torch.zeros(MAX_PROMPTS, dtype=torch.int64, device=device)
        self._seen: set[Kind] = set()
        self._graphs: dict[Kind, Graph | None] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def takes(self, prompts: Sequence[NextTokens]) -> bool:
        """Return whether the prompts can be read in a graph, which would not call hooks."""
        tokens = sum(len(prompt.embeds) for prompt in prompts)
        longest = max(prompt.start + len(prompt.embeds) for prompt in prompts)
        fits = 0 < tokens <= SIZES[-1] and (longest <= LONG_CONTEXT or tokens <= SHORT_CHUNK)
        if not fits or len(prompts) > MAX_PROMPTS or any(one.embeds.dtype != self._embeds.dtype for one in prompts):
            return False
        return not any(module._forward_hooks or module._forward_pre_hooks for module in self._modules)  # pyright: ignore[reportPrivateUsage]

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[NextTokens]) -> Tensor:
        """Read the prompts' next tokens -> the hidden states of the last ones, `[n, D]`."""
        kind = Kind.of(prompts)
        self._fill(prompts, kind)
        graph = self._graph(kind)
        if graph is None:
            return self._read(kind)[: len(prompts)]
        graph.graph.replay()
        return graph.hidden[: len(prompts)].clone()

    def _graph(self, kind: Kind) -> Graph | None:
        """Return the graph of a kind; None if it comes for the first time, or if there is too little memory."""
        if kind not in self._seen:
            self._seen.add(kind)  # what comes only once is not worth a capture
            return None
        if kind not in self._graphs:
            try:
                self._graphs[kind] = Graph(*capture(lambda: self._read(kind), self._last.device, self._pool))
            except torch.OutOfMemoryError:
                message = f"Prompts of {kind.size} tokens are read without a CUDA graph: too little GPU memory is left."
                warnings.warn(message, stacklevel=2)
                self._graphs[kind] = None
        return self._graphs[kind]

    def _fill(self, prompts: Sequence[NextTokens], kind: Kind) -> None:
        """Put the prompts where the graphs find them. Nothing waits for the GPU."""
        page, device, size = self._cache.page_size, self._last.device, kind.size
        tokens = sum(len(prompt.embeds) for prompt in prompts)
        layout = [(prompt.start, len(prompt.embeds), prompt.pages) for prompt in prompts]
        packed = pack(layout, size, page=page, block=self._block_tokens[size, kind.long])
        torch.cat([prompt.embeds for prompt in prompts], out=self._embeds[:tokens])
        self._embeds[tokens:size].zero_()  # what was there need not be finite
        numbers = upload([*packed.positions, *packed.slots, *packed.last], device, torch.int64)
        self._new.positions[:size] = numbers[:size]
        self._new.slots[:size] = numbers[size : 2 * size]
        self._last[: len(prompts)] = numbers[2 * size :]
        tables = [
            [*prompt.pages[: -(-(start + count) // page)]]
            for prompt, (start, count, _) in zip(prompts, layout, strict=True)
        ]
        numbers = upload([*packed.blocks, *(one for table in tables for one in table)], device, torch.int32)
        blocks = len(packed.blocks) // 4
        self._new.blocks[:blocks] = numbers[: 4 * blocks].view(-1, 4)
        self._new.blocks[blocks:].zero_()
        of_tables = numbers[4 * blocks :].split([len(table) for table in tables])
        for row, table in zip(self._new.table, of_tables, strict=False):
            row[: len(table)] = table

    def _read(self, kind: Kind) -> Tensor:
        from vila_core.ops.ragged_attention import RaggedTokens

        size = kind.size
        blocks = -(-size // self._block_tokens[size, kind.long]) + (0 if kind.prompts == 1 else kind.prompts)
        new = RaggedTokens(
            self._new.positions[:size], self._new.slots[:size], self._new.blocks[:blocks], self._new.table
        )
        return self._fused.read(self._embeds[:size], new, self._cache, self._last[: kind.prompts], long=kind.long)


def prefill_graphs(
    decoder: NativeDecoder, cache: PagedCache | DividedPages, max_pages: int, step: PagedStep
) -> GraphPrefill | None:
    """Return graphs for short chunks; None where `step` is not captured, on several devices, and for 8 bits."""
    if isinstance(step, TorchStep) or isinstance(decoder, DividedDecoder) or isinstance(cache, DividedPages):
        return None
    if cache.scales is not None:
        return None
    from vila_core.language.paged_graphs import GraphPagedStep  # needs Triton

    assert isinstance(step, GraphPagedStep), "the step of a decoder on one device"
    return GraphPrefill(decoder, cache, max_pages, step.fused)
