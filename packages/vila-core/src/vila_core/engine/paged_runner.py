"""Runs a native decoder over a paged KV cache: several requests at a time, prompts in chunks, pages shared.

T tokens of a chunk, D width
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vila_core.device_memory import is_out_of_memory
from vila_core.engine.memory import num_pages, too_little_memory
from vila_core.engine.pages import PagePool, pages_of
from vila_core.engine.row_runner import RowRunner
from vila_core.generation.heads import GenerationHead
from vila_core.language.divided import NativeDecoder, embedding, new_pages
from vila_core.language.paged_prefill import NextTokens, prefill_graphs
from vila_core.language.paged_step import paged_step
from vila_core.uploads import upload

if TYPE_CHECKING:
    from vila_core.engine.limits import EngineConfig
    from vila_core.engine.request import Request


class PagedRunner(RowRunner):
    """Runs a native decoder over a paged KV cache, also on several devices.

    Args:
        decoder: the language model.
        config: how much memory and how many rows.
        head: draws; None if the model only writes.

    Raises:
        GenerationError: there is too little memory for the cache.
    """

    def __init__(self, decoder: NativeDecoder, config: "EngineConfig", head: GenerationHead | None = None):
        weight = embedding(decoder)
        pages = num_pages(decoder, config)
        try:
            self._cache = new_pages(decoder, pages + 1, in_8_bits=config.kv_cache_dtype == "fp8")
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise too_little_memory(decoder, config, pages) from None
        row_pages = min(pages, pages_of(decoder.config.max_length))
        super().__init__(decoder, paged_step(decoder, self._cache, config.max_batch, row_pages), weight, head)
        self.pool = PagePool(pages)
        self._graphs = prefill_graphs(decoder, self._cache, row_pages, self._step)
        scaling = decoder.config.rope_scaling
        # Under dynamic scaling, the angles of all tokens depend on the length of the whole prompt.
        self.reads_in_chunks = scaling is None or scaling.rope_type != "dynamic"
        self.overlaps = weight.is_cuda
        self.checks_drafts = self.reads_in_chunks

    def pages_for(self, tokens: int) -> int:
        """See `Runner`."""
        return pages_of(tokens)

    def copy_page(self, source: int, target: int) -> None:
        """See `Runner`."""
        self._cache.copy_page(source, target)

    def read(self, requests: "Sequence[Request]", embeds: Sequence[Tensor]) -> Tensor:
        """See `Runner`."""
        lengths = [len(one) for one in embeds]
        start, longest = requests[0].length, max(lengths)
        assert not start or len(requests) == 1, "chunks in the middle of a prompt are read one by one"
        if self._graphs is not None:
            prompts = [
                NextTokens(one, request.length, request.pages) for request, one in zip(requests, embeds, strict=True)
            ]
            if self._graphs.takes(prompts):
                return self._graphs(prompts)
        # Padding is written past the end of a row: to its own pages, and from there on to a page that nobody reads.
        table = torch.full((len(requests), pages_of(start + longest)), self.pool.num_pages)
        for row, request in zip(table, requests, strict=True):
            pages = request.pages[: len(row)]
            row[: len(pages)] = torch.tensor(pages)
        cache = self._cache.rows(upload(table, self.device)).up_to(start + longest)
        positions = torch.arange(start, start + longest, device=self.device)[None] if start else None
        ends = upload(lengths, self.device)
        hidden = self._llm(
            nn.utils.rnn.pad_sequence(list(embeds), batch_first=True),
            positions=positions,
            cache=cache,
            lengths=None if min(lengths) == longest else ends,
        )
        return hidden[torch.arange(len(embeds), device=self.device), ends - 1]
