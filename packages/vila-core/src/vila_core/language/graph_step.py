"""The decode step captured in CUDA graphs: one launch reads a new token of every row.

B rows, D width

A graph is captured for each number of rows. It depends neither on lengths nor on a cache: the kernels read positions
and the cache's address from memory.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vila_core.language.cache import KVCache
from vila_core.language.fused_step import AddressedCache, FusedStep, step_refusal

if TYPE_CHECKING:
    from vila_core.language.cache import Cache
    from vila_core.language.decoder import Decoder

MAX_ROWS = 64
"""With more rows the products are too large for a step to be limited by launches."""


@dataclass(frozen=True)
class CapturedStep:
    """A graph with its inputs and its result."""

    graph: torch.cuda.CUDAGraph
    embeds: Tensor
    positions: Tensor
    cache: AddressedCache
    hidden: Tensor


class GraphDecodeStep:
    """A `DecodeStep` on an NVIDIA GPU.

    Inputs that it is not made for go through the decoder's own forward: more than `MAX_ROWS` rows, or a cache in
    another dtype or in pages (see `paged_graphs`).

    Args:
        decoder: the decoder that this step is for.
    """

    def __init__(self, decoder: Decoder):
        self._decoder = decoder
        self._fused: FusedStep | None = None
        self._graphs: dict[int, CapturedStep] = {}
        self._caches: dict[int, weakref.ref[Tensor]] = {}
        self._lock = threading.Lock()

    def __call__(self, embeds: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """`[B, 1, D]` at `positions` `[B, 1]` or `[1, 1]` -> hidden states after the final norm, `[B, 1, D]`."""
        if not isinstance(cache, KVCache) or len(embeds) > MAX_ROWS or cache.keys.dtype != embeds.dtype:
            return self._decoder(embeds, positions=positions, cache=cache)
        with self._lock:
            step = self._captured(len(embeds), cache)
            step.embeds.copy_(embeds[:, 0])
            step.positions.copy_(positions[:, 0].expand(len(embeds)))
            step.graph.replay()
            return step.hidden.clone()[:, None]

    def _captured(self, rows: int, cache: KVCache) -> CapturedStep:
        """Return the graph for so many rows, which reads `cache`."""
        from vila_core.ops.attention import cache_address

        known = self._caches.get(rows)
        if known is not None and known() is cache.keys:
            return self._graphs[rows]
        # Another answer begins: only now may the decoder have got other weights.
        if self._fused is None or not self._fused.is_current():
            self._fused, self._graphs, self._caches = FusedStep(self._decoder), {}, {}
        if rows not in self._graphs:
            self._graphs[rows] = capture(self._fused, rows)
        step = self._graphs[rows]
        step.cache.address.copy_(torch.tensor(cache_address(cache.keys, cache.values)))
        self._caches[rows] = weakref.ref(cache.keys)
        return step


@torch.inference_mode(False)
@torch.no_grad()
def capture(step: FusedStep, rows: int) -> CapturedStep:
    """Capture `step` for `rows` rows."""
    device, config = step.device, step.config
    embeds = torch.zeros(rows, config.hidden_size, device=device, dtype=step.layers[0].input_norm.dtype)
    positions = torch.full((rows,), -1, device=device)  # nothing is written while the kernels are compiled
    address = torch.zeros(5, dtype=torch.int64, device=device)
    counters = torch.zeros(rows * config.num_key_value_heads, dtype=torch.int32, device=device)
    cache = AddressedCache(address, counters, config.num_key_value_heads)
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        step(embeds, positions, cache)
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            hidden = step(embeds, positions, cache)
    torch.cuda.current_stream(device).wait_stream(stream)
    return CapturedStep(graph, embeds, positions, cache, hidden)


def use_graph_step(decoder: Decoder, device: torch.device, dtype: torch.dtype) -> None:
    """Let `decoder` decode through CUDA graphs; warn if it is on a GPU and cannot."""
    reason = step_refusal(decoder.config, device, dtype)
    if reason is None:
        decoder.use_step(GraphDecodeStep(decoder))
    elif device.type == "cuda":
        warnings.warn(f"Decoding takes the slower path, without CUDA graphs: {reason}.", stacklevel=2)
