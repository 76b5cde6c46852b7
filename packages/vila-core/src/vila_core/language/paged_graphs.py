"""The paged decode step in CUDA graphs, one for each number of rows and kind of step.

B rows, D width, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vila_core.language.capturing import capture
from vila_core.language.fused_step import FusedStep, PagedView
from vila_core.language.linear_groups import LinearGroup, group
from vila_core.language.paged_rows import ReadyTokens, StepKind, StepRows
from vila_core.language.read_ahead import TokensAhead, read_as_chunks
from vila_core.ops.codes import choose_codes
from vila_core.ops.sampling import choose_tokens
from vila_core.uploads import upload

if TYPE_CHECKING:
    from vila_core.language.decoder import Decoder
    from vila_core.language.divided import DividedPages, NativeDecoder
    from vila_core.language.paged_cache import PagedCache
    from vila_core.language.paged_step import Drawer

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of rows that have graphs; above, multiples of the last."""


@dataclass(frozen=True)
class Graph:
    """A captured step and its results."""

    graph: torch.cuda.CUDAGraph
    logits: Tensor
    chosen: Tensor


class TokensInFlight:
    """`PendingTokens` that are copied to the host behind the step."""

    def __init__(self, logits: Tensor, chosen: Tensor):
        self.logits = logits
        self._on_host = torch.empty(chosen.shape, dtype=chosen.dtype, pin_memory=True)
        self._on_host.copy_(chosen, non_blocking=True)
        self._arrived = torch.cuda.Event()
        self._arrived.record()

    def tokens(self) -> list[Any]:
        self._arrived.synchronize()
        return self._on_host.tolist()


class GraphPagedStep:
    """A `PagedStep` on an NVIDIA GPU.

    Args:
        decoder: the language model; its weights stay where they are.
        cache: its pages, of a multiple of 64 slots.
        rows: their state.
    """

    def __init__(self, decoder: Decoder, cache: PagedCache, rows: StepRows):
        self._decoder = decoder
        self._cache = cache
        self._rows = rows
        self._fused = FusedStep(decoder)
        self._head = head_of(decoder)
        self._counters = torch.zeros(
            len(rows.ids) * decoder.config.num_key_value_heads, dtype=torch.int32, device=self._fused.device
        )
        self._embeds = torch.zeros(
            len(rows.ids), decoder.config.hidden_size, dtype=cache.dtype, device=self._fused.device
        )
        self._graphs: dict[tuple[int, StepKind | None], Graph] = {}
        self._drawings: dict[tuple[str, int, StepKind], Graph] = {}
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

    @property
    def fused(self) -> FusedStep:
        """The decoder's layers, whose linears are grouped; grouping them again would copy weights in four bits."""
        return self._fused

    @torch.inference_mode()
    def choose(self, rows: Sequence[int], logits: Tensor, kind: StepKind) -> TokensInFlight:
        return choose_first(self._rows, rows, logits, kind)

    @torch.inference_mode()
    def launch(self, count: int, kind: StepKind) -> TokensInFlight:
        graph = self.captured(count, kind)
        graph.graph.replay()
        return TokensInFlight(graph.logits[:count], graph.chosen[:count])

    @torch.inference_mode()
    def read_ahead(self, ahead: TokensAhead, kind: StepKind) -> ReadyTokens:
        return choose_ahead(self._decoder, self._cache, self._rows, ahead, kind)

    @torch.inference_mode()
    def hidden(self, embeds: Tensor) -> Tensor:
        graph = self.captured(len(embeds), None)
        self._embeds[: len(embeds)] = embeds
        graph.graph.replay()
        return graph.logits[: len(embeds)].clone()

    @torch.inference_mode()
    def draw(self, drawer: Drawer, count: int, kind: StepKind) -> TokensInFlight:
        """See `PagedStep`. One graph: the layers, every code of the position, and what is read next."""
        rows = self._rows.first(bucket(count, len(self._rows.ids)))
        read = self._hidden_step(rows, drawer.embeds)

        def step() -> tuple[Tensor, Tensor]:
            hidden, _ = read()
            return hidden, drawer.draw(hidden, kind)

        return self._draw(drawer, rows, count, ("read", len(rows.ids), kind), step)

    @torch.inference_mode()
    def draw_after(self, drawer: Drawer, hidden: Tensor, kind: StepKind) -> TokensInFlight:
        count = len(hidden)
        rows = self._rows.first(bucket(count, len(self._rows.ids)))
        given = self._embeds[: len(rows.ids)]
        given[:count] = hidden
        key = "given", len(rows.ids), kind
        return self._draw(drawer, rows, count, key, lambda: (given, drawer.draw(given, kind)))

    def _draw(
        self,
        drawer: Drawer,
        rows: StepRows,
        count: int,
        key: tuple[str, int, StepKind],
        step: Callable[[], tuple[Tensor, Tensor]],
    ) -> TokensInFlight:
        """Run a step that ends with the codes of `rows`, captured if it is new; return those of the first `count`."""
        if key not in self._drawings:
            with drawer.unused():
                self._drawings[key] = self._capture(step, rows)
        graph = self._drawings[key]
        graph.graph.replay()
        return TokensInFlight(graph.logits[:count], graph.chosen[:count])

    def captured(self, count: int, kind: StepKind | None) -> Graph:
        """Return the graph for so many rows, captured if it is new; kind None is a step of `hidden`."""
        assert 0 < count <= len(self._rows.ids)
        key = bucket(count, len(self._rows.ids)), kind
        if key not in self._graphs:
            rows = self._rows.first(key[0])
            call = self._hidden_step(rows, self._embeds) if kind is None else self._token_step(rows, kind)
            self._graphs[key] = self._capture(call, rows)
        return self._graphs[key]

    def _token_step(self, rows: StepRows, kind: StepKind) -> Callable[[], tuple[Tensor, Tensor]]:
        view = PagedView(self._cache, rows.table, self._counters)
        embedding = self._decoder.model.embed_tokens.weight

        def step() -> tuple[Tensor, Tensor]:
            hidden = self._fused(F.embedding(rows.ids, embedding), rows.positions, view, self._head)
            logits = self._decoder.logits(hidden) if self._head is None else self._head(hidden)
            return logits, rows.choose(choose_tokens, logits, kind, ahead=1)

        return step

    def _hidden_step(self, rows: StepRows, given: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        view = PagedView(self._cache, rows.table, self._counters)
        embeds = given[: len(rows.ids)]

        def step() -> tuple[Tensor, Tensor]:
            hidden = self._fused(embeds, rows.positions, view)
            return hidden, rows.positions.add_(rows.positions >= 0)

        return step

    def _capture(self, call: Callable[[], tuple[Tensor, Tensor]], rows: StepRows) -> Graph:
        with rows.unused():
            graph, results = capture(call, self._fused.device, self._pool)
        return Graph(graph, *results)


def bucket(count: int, most: int) -> int:
    """Return how many rows, `most` at most, a step of `count` rows computes."""
    found = next((size for size in BUCKETS if size >= count), -(-count // BUCKETS[-1]) * BUCKETS[-1])
    return min(found, most)


def choose_ahead(
    decoder: NativeDecoder, cache: PagedCache | DividedPages, rows: StepRows, ahead: TokensAhead, kind: StepKind
) -> ReadyTokens:
    """See `PagedStep.read_ahead`.

    The captured attention reads and writes one token of each row, in any order, so drafts are read as prompts are.
    """
    logits = decoder.logits(read_as_chunks(decoder, cache, rows.table[: len(ahead.ids)], ahead)).contiguous()
    picked = ahead.pick(rows, penalizes=kind.penalizes)
    return ReadyTokens(logits, picked.choose(choose_tokens, logits, kind, ahead=1))


def choose_first(rows: StepRows, places: Sequence[int], logits: Tensor, kind: StepKind) -> TokensInFlight:
    """Choose the first tokens of the rows `places` from the logits `[n, V]` of their prompts."""
    index = upload(places, logits.device)
    picked = rows.pick(index)
    chosen = picked.choose(choose_tokens, logits.contiguous(), kind, ahead=0)
    rows.ids[index] = picked.ids
    if kind.penalizes:
        rows.counts[index] = picked.counts
    return TokensInFlight(logits, chosen)


def head_of(decoder: Decoder) -> LinearGroup | None:
    """Return the head as a group; None if it is quantized and lacks rows, see `Decoder.logits`."""
    if decoder.lm_head is None:
        tied = nn.Linear(1, 1, bias=False, device="meta")
        tied.weight = nn.Parameter(decoder.model.embed_tokens.weight, requires_grad=False)
        return group((tied,))
    return group((decoder.lm_head,)) if type(decoder.lm_head) is nn.Linear else None
