"""Language models behind one interface: the native decoder and the transformers adapter.

B batch, T tokens, S cached + new tokens, D width, V vocabulary
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from vila_core.config import LanguageModelConfig
    from vila_core.language.cache import Cache


class LanguageModel(Protocol):
    """A `torch.nn.Module` that turns embeddings into hidden states and hidden states into logits."""

    @property
    def config(self) -> LanguageModelConfig: ...

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids `[B, T]` int64 -> embeddings `[B, T, D]`."""
        ...

    def __call__(
        self,
        embeds: torch.Tensor,
        *,
        positions: torch.Tensor | None = None,
        cache: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings `[B, T, D]` -> hidden states after the final norm `[B, T, D]`.

        `positions` `[B, T]` int64 defaults to the number of attended tokens before each one. `attention_mask` `[B, S]`
        bool is True where a token may be attended to; without it every token is. A `cache` of `new_cache` is filled.
        """
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states `[..., D]` -> scores of the next token `[..., V]`, in the weights' dtype."""
        ...

    def new_cache(self, batch_size: int, max_length: int) -> Cache:
        """Return an empty cache of `max_length` slots on the model's device, in its dtype."""
        ...
