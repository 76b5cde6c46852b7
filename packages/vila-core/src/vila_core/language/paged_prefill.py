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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vila_core.language.capturing import capture
from vila_core.language.divided import DividedDecoder, DividedPages, NativeDecoder
from vila_core.language.paged_step import PagedStep, TorchStep
from vila_core.uploads import upload_into

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
    """The key of a graph: what it computes.

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
class Layout:
    """Where the numbers of a graph are in one tensor, for `RaggedTokens` and which tokens are the last ones.

    Attributes:
        tokens, prompts, blocks: how many there may be.
        pages: of a row.
    """

    tokens: int
    prompts: int
    blocks: int
    pages: int

    @property
    def end(self) -> int:
        """Numbers of 64 bits."""
        return self._start_of_halves + -(-(4 * self.blocks + self.prompts * self.pages) // 2)

    @property
    def _start_of_halves(self) -> int:
        # An even number: kernels are compiled for pointers to multiples of 16 bytes.
        return 2 * self.tokens + self.prompts + self.prompts % 2

    def parts(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return positions, slots and last tokens, int64, and blocks and page tables, int32, in int64 `numbers`."""
        positions, slots, last = numbers.split([self.tokens, self.tokens, len(numbers) - 2 * self.tokens])
        halves = numbers[self._start_of_halves : self.end].view(torch.int32)
        blocks, table = halves[: 4 * self.blocks], halves[4 * self.blocks :][: self.prompts * self.pages]
        return positions, slots, last[: self.prompts], blocks.view(-1, 4), table.view(self.prompts, self.pages)


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
        from vila_core.ops.ragged_attention import block_tokens  # needs Triton

        device, config = decoder.model.embed_tokens.weight.device, decoder.config
        # Hooks are put into these dicts, which stay.
        self._hooks: list[dict[int, Any]] = [
            hooks
            for module in decoder.modules()
            for hooks in (module._forward_hooks, module._forward_pre_hooks)  # pyright: ignore[reportPrivateUsage]
        ]
        self._fused = fused
        self._cache = cache
        self._max_pages = max_pages
        group = config.num_attention_heads // config.num_key_value_heads
        self._block_tokens = {
            (size, long): block_tokens(size, group, long=long) for size in SIZES for long in (False, True)
        }
        kinds = [Kind(SIZES[-1], MAX_PROMPTS, long) for long in (False, True)]
        with torch.inference_mode(False):
            self._embeds = torch.zeros(SIZES[-1], config.hidden_size, device=device, dtype=cache.dtype)
            self._numbers = torch.zeros(max(self._layout(kind).end for kind in kinds), dtype=torch.int64, device=device)
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
        return not any(self._hooks)

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
                self._graphs[kind] = Graph(*capture(lambda: self._read(kind), self._embeds.device, self._pool))
            except torch.OutOfMemoryError:
                message = f"Prompts of {kind.size} tokens are read without a CUDA graph: too little GPU memory is left."
                warnings.warn(message, stacklevel=2)
                self._graphs[kind] = None
        return self._graphs[kind]

    def _layout(self, kind: Kind) -> Layout:
        """Return where the numbers are that the graph of a kind reads."""
        blocks = -(-kind.size // self._block_tokens[kind.size, kind.long])
        return Layout(kind.size, kind.prompts, blocks + (0 if kind.prompts == 1 else kind.prompts), self._max_pages)

    def _fill(self, prompts: Sequence[NextTokens], kind: Kind) -> None:
        """Put the prompts where the graphs find them, with one copy from the host. Nothing waits for the GPU."""
        page, tokens = self._cache.page_size, sum(len(prompt.embeds) for prompt in prompts)
        given = [(prompt.start, len(prompt.embeds), prompt.pages) for prompt in prompts]
        packed = pack(given, kind.size, page=page, block=self._block_tokens[kind.size, kind.long])
        layout = self._layout(kind)
        numbers = torch.zeros(layout.end, dtype=torch.int64)
        positions, slots, last, blocks, table = (part.numpy() for part in layout.parts(numbers))
        positions[:], slots[:], last[: len(prompts)] = packed.positions, packed.slots, packed.last
        blocks.reshape(-1)[: len(packed.blocks)] = packed.blocks
        for row, (start, count, pages) in zip(table, given, strict=False):
            used = -(-(start + count) // page)
            row[:used] = pages[:used]
        upload_into(self._numbers[: layout.end], numbers)
        torch.cat([prompt.embeds for prompt in prompts], out=self._embeds[:tokens])
        if tokens < kind.size:
            self._embeds[tokens : kind.size].zero_()  # what was there need not be finite

    def _read(self, kind: Kind) -> Tensor:
        from vila_core.ops.ragged_attention import RaggedTokens

        positions, slots, last, blocks, table = self._layout(kind).parts(self._numbers)
        new = RaggedTokens(positions, slots, blocks, table)
        return self._fused.read(self._embeds[: kind.size], new, self._cache, last, long=kind.long)


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
