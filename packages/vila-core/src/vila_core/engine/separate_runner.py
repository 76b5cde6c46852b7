"""Runs any language model, such as one of transformers, with a cache for each request.

T tokens of a prompt, D width
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vila_core.device_memory import is_out_of_memory
from vila_core.engine.pages import PagePool
from vila_core.engine.row_runner import RowRunner
from vila_core.errors import GenerationError
from vila_core.generation.heads import GenerationHead
from vila_core.language import LanguageModel
from vila_core.language.paged_rows import StepRows
from vila_core.language.paged_step import TorchStep

if TYPE_CHECKING:
    from vila_core.engine.limits import EngineConfig
    from vila_core.engine.request import Request
    from vila_core.language.cache import Cache


class SeparateRunner(RowRunner):
    """Runs any language model, with a cache for each request.

    Args:
        llm: the language model.
        config: how many rows.
        head: draws; None if the model only writes.
    """

    def __init__(self, llm: LanguageModel, config: "EngineConfig", head: GenerationHead | None = None):
        assert isinstance(llm, nn.Module), "a language model is a module"
        weight = next(llm.parameters())
        rows = StepRows.allocate(config.max_batch, 1, llm.config.vocab_size, weight.device)
        super().__init__(llm, SeparateStep(llm, rows, self._cache_of_row), weight, head)
        self.pool = PagePool(0)
        self.reads_in_chunks = False
        self.overlaps = False
        self.checks_drafts = False
        self._caches: dict[Request, Cache] = {}

    def pages_for(self, tokens: int) -> int:
        """See `Runner`: the caches are the requests' own."""
        del tokens
        return 0

    def copy_page(self, source: int, target: int) -> None:
        """See `Runner`: there are no pages."""

    def read(self, requests: "Sequence[Request]", embeds: Sequence[Tensor]) -> Tensor:
        """See `Runner`. Each of `embeds` is a whole prompt."""
        return torch.stack([self._read(*one) for one in zip(requests, embeds, strict=True)])

    def _read(self, request: "Request", embeds: Tensor) -> Tensor:
        tokens = request.most_tokens
        try:
            cache = self._llm.new_cache(1, tokens)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise GenerationError(
                f"There is too little memory for a cache of {tokens:,} tokens. Reduce max_new_tokens or the prompt."
            ) from None
        self._caches[request] = cache
        return self._llm(embeds[None], cache=cache)[0, -1]

    def leave(self, request: "Request") -> None:
        """See `Runner`."""
        super().leave(request)
        self._caches.pop(request, None)

    def _cache_of_row(self, row: int) -> "Cache":
        return self._caches[self._order.requests[row]]


class SeparateStep(TorchStep):
    """A step of rows that have a cache each.

    Args:
        llm: the language model.
        rows: their state.
        cache_of: the cache of a row.
    """

    def __init__(self, llm: LanguageModel, rows: StepRows, cache_of: "Callable[[int], Cache]"):
        super().__init__(llm, rows)
        self._cache_of = cache_of

    def _hidden(self, rows: Tensor, positions: Tensor, embeds: Tensor) -> Tensor:
        hidden = [
            self._llm.decode_step(
                one[None],
                torch.tensor([[position]], device=embeds.device),
                self._cache_of(row).up_to(position + 1),
            )
            for row, position, one in zip(rows.tolist(), positions.tolist(), embeds, strict=True)
        ]
        return torch.cat(hidden)[:, -1]
