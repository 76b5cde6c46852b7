"""The paged decode step of a decoder on several NVIDIA GPUs, in CUDA graphs of each of them.

B rows, D width, V vocabulary

A step embeds the tokens on the first GPU, runs the blocks, and chooses tokens on the first GPU again. GPUs that hold
some of the layers run one after the other. GPUs that hold some of the heads run at the same time, and their kernels
wait for each other (see `ops.exchange`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from vila_core.language.capturing import capture
from vila_core.language.decoder import Block
from vila_core.language.divided import DividedDecoder, DividedPages, embedding
from vila_core.language.fused_step import FusedLayers, PagedView
from vila_core.language.paged_graphs import TokensInFlight, bucket, choose_ahead, choose_first, head_of
from vila_core.language.paged_rows import ReadyTokens, StepKind, StepRows
from vila_core.language.read_ahead import TokensAhead
from vila_core.language.split import SplitDecoder
from vila_core.language.tensor_parallel import Shard, TensorParallelDecoder
from vila_core.ops.codes import choose_codes
from vila_core.ops.exchange import Peer, new_peers, require_meeting
from vila_core.ops.sampling import choose_tokens

if TYPE_CHECKING:
    from vila_core.language.paged_cache import PagedCache
    from vila_core.language.paged_step import Drawer


class DividedGraphStep:
    """A `PagedStep` on several NVIDIA GPUs.

    Args:
        decoder: its weights stay where they are.
        cache: its pages, of a multiple of 64 slots.
        rows: their state, on the first GPU.
    """

    def __init__(self, decoder: DividedDecoder, cache: DividedPages, rows: StepRows):
        self._whole = decoder
        self._cache = cache
        self._decoder = decoder.decoder
        self._rows = rows
        self._works_together = isinstance(decoder, TensorParallelDecoder)
        self._peers = _peers(decoder, len(rows.ids))
        self._parts = [
            PartGraphs(layers, pages, rows)
            for layers, pages in zip(_layers(decoder, self._peers), cache.parts, strict=True)
        ]
        self._head = head_of(self._decoder)
        self._embedding = embedding(decoder)
        self._choices: dict[tuple[int, StepKind], Choice] = {}
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def rows(self) -> StepRows:
        return self._rows

    @property
    def choose_tokens(self) -> Callable[..., Tensor]:
        return choose_tokens

    @property
    def choose_codes(self) -> Callable[..., tuple[Tensor, Tensor]]:
        return choose_codes

    @torch.inference_mode()
    def choose(self, rows: Sequence[int], logits: Tensor, kind: StepKind) -> TokensInFlight:
        return choose_first(self._rows, rows, logits, kind)

    @torch.inference_mode()
    def launch(self, count: int, kind: StepKind) -> TokensOfPeers:
        size = bucket(count, len(self._rows.ids))
        choice = self._choice(size, kind)
        choice.hidden.copy_(self._run(F.embedding(self._rows.ids[:size], self._embedding)))
        choice.graph.replay()
        return TokensOfPeers(choice.logits[:count], choice.chosen[:count], self._peers)

    @torch.inference_mode()
    def read_ahead(self, ahead: TokensAhead, kind: StepKind) -> ReadyTokens:
        return choose_ahead(self._whole, self._cache, self._rows, ahead, kind)

    @torch.inference_mode()
    def hidden(self, embeds: Tensor) -> Tensor:
        count, size = len(embeds), bucket(len(embeds), len(self._rows.ids))
        padded = embeds.new_zeros(size, embeds.shape[1])
        padded[:count] = embeds
        hidden = self._run(padded)[:count].to(embeds.device, copy=True)
        positions = self._rows.positions[:count]
        positions += positions >= 0
        return hidden

    @torch.inference_mode()
    def draw(self, drawer: Drawer, count: int, kind: StepKind) -> TokensInFlight:
        return self.draw_after(drawer, self.hidden(drawer.embeds[:count]), kind)

    @torch.inference_mode()
    def draw_after(self, drawer: Drawer, hidden: Tensor, kind: StepKind) -> TokensInFlight:
        return TokensInFlight(hidden, drawer.draw(hidden, kind))

    def _run(self, embeds: Tensor) -> Tensor:
        """Inputs `[B, D]` of the first B rows -> hidden states after the final norm, `[B, D]` on any of the GPUs."""
        count = len(embeds)
        for part in self._parts:
            part.prepare(count)
        rows = self._rows.first(count)
        if not self._works_together:
            x = embeds
            for part in self._parts:
                part.receive(x, rows)
                x = part.replay(count)
            return x
        for part in self._parts:
            part.receive(embeds, rows)
        first, *_ = [part.replay(count) for part in self._parts]
        return first

    def _choice(self, count: int, kind: StepKind) -> Choice:
        """Return the graph that chooses tokens for so many rows, captured if it is new."""
        if (count, kind) not in self._choices:
            rows = self._rows.first(count)
            weight = self._embedding
            with torch.inference_mode(False):
                hidden = torch.zeros(count, weight.shape[1], dtype=weight.dtype, device=weight.device)

            def choose() -> tuple[Tensor, Tensor]:
                logits = self._decoder.logits(hidden) if self._head is None else self._head(hidden)
                return logits, rows.choose(choose_tokens, logits, kind, ahead=1)

            with rows.unused():
                graph, (logits, chosen) = capture(choose, weight.device, self._pool)
            self._choices[count, kind] = Choice(graph, hidden, logits, chosen)
        return self._choices[count, kind]


class TokensOfPeers(TokensInFlight):
    """Tokens of a step whose GPUs may have timed out waiting for each other."""

    def __init__(self, logits: Tensor, chosen: Tensor, peers: Sequence[Peer]):
        super().__init__(logits, chosen)
        self._peers = peers

    def tokens(self) -> list[int]:
        tokens = super().tokens()
        if min(tokens) < 0:
            require_meeting(self._peers)
        return tokens


@dataclass(frozen=True)
class Choice:
    """A graph from hidden states to tokens."""

    graph: torch.cuda.CUDAGraph
    hidden: Tensor
    logits: Tensor
    chosen: Tensor


class PartGraphs:
    """The blocks of one GPU in CUDA graphs, one for each number of rows.

    Args:
        layers: the blocks.
        cache: their pages.
        rows: of the step, on the first GPU.
    """

    @torch.inference_mode(False)
    def __init__(self, layers: FusedLayers, cache: PagedCache, rows: StepRows):
        most, config, device = len(rows.ids), layers.config, layers.device
        self._layers = layers
        self._cache = cache
        self._embeds = torch.zeros(most, config.hidden_size, dtype=layers.layers[0].input_norm.dtype, device=device)
        self._positions = torch.zeros(most, dtype=torch.int64, device=device)
        self._table = torch.zeros_like(rows.table, device=device)
        self._counters = torch.zeros(most * config.num_key_value_heads, dtype=torch.int32, device=device)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def prepare(self, count: int) -> None:
        """Capture the graph for so many rows if it is new."""
        if count in self._graphs:
            return
        view = PagedView(self._cache, self._table[:count], self._counters)
        embeds, positions = self._embeds[:count], self._positions[:count]
        positions.fill_(-1)  # nothing is written to the cache, and no GPU waits for another
        graph, hidden = capture(lambda: self._layers(embeds, positions, view), self._layers.device, self._pool)
        graph.replay()  # the first launch may allocate memory, which must not happen while a GPU waits
        self._graphs[count] = graph, hidden

    def receive(self, embeds: Tensor, rows: StepRows) -> None:
        """Take the inputs `[B, D]` of the first B rows from another GPU."""
        count = len(embeds)
        self._embeds[:count].copy_(embeds, non_blocking=True)
        self._positions[:count].copy_(rows.positions, non_blocking=True)
        self._table[:count].copy_(rows.table, non_blocking=True)

    def replay(self, count: int) -> Tensor:
        """Run the blocks for the first rows; return `[B, D]`, valid until the next call."""
        graph, hidden = self._graphs[count]
        graph.replay()
        return hidden


def _peers(decoder: DividedDecoder, most_rows: int) -> list[Peer]:
    """Return what GPUs that work together add up their results with."""
    if not isinstance(decoder, TensorParallelDecoder):
        return []
    weight = embedding(decoder)
    return new_peers([part.device for part in decoder.parts], most_rows, weight.shape[1], weight.dtype)


def _layers(decoder: DividedDecoder, peers: Sequence[Peer]) -> list[FusedLayers]:
    """Return the blocks of each part of `decoder`."""
    norm = decoder.decoder.model.norm.weight
    if isinstance(decoder, SplitDecoder):
        last = decoder.segments[-1]
        return [
            FusedLayers(
                segment.part.config,
                segment.blocks,
                segment.rotary,
                norm.to(segment.part.device) if segment is last else None,
            )
            for segment in decoder.segments
        ]
    assert isinstance(decoder, TensorParallelDecoder)
    shards = [cast("Shard", shard) for shard in decoder.shards]
    return [
        FusedLayers(
            shard.part.config,
            [cast("Block", block) for block in shard.blocks],
            shard.rotary,
            norm.to(shard.part.device),
            peer,
        )
        for shard, peer in zip(shards, peers, strict=True)
    ]
